"""What is being tried in one tab of the playground, and where it is shown."""

import asyncio
import base64
import binascii
from html import escape
from pathlib import Path

from service.dashboard import words
from service.dashboard.findings import MAX_FILE_BYTES, Experiment
from service.dashboard.laboratory import ExperimentError
from service.dashboard.pages.finding import images, picture, said, verdict
from service.dashboard.shell import Tab, element, html

DATA_URL = ";base64,"
FIRST_STEPS = 10


class Bench:
    """What is being tried in one tab, and where it is shown. While an experiment runs only the latest wish waits."""

    def __init__(self, tab: Tab, bundle: Path, image: str):
        self._laboratory = tab.state.laboratory
        self.experiment = Experiment(bundle=bundle, image=image, eps=0, steps=FIRST_STEPS)
        self._shown: Experiment | None = None
        self._busy = False

    def place(self) -> None:
        with element("div", "stack"):
            self._fault = html("", classes="fault").props("role=alert")
            self._verdict = html("", classes="card").props("role=status")
            self._images = html("", classes="card")
            with element("div", "grid wide"):
                self._plane = html("", classes="card")
                self._table = html("", classes="card")

    def change(self, **wish: object) -> asyncio.Task[None]:
        self.experiment = self.experiment.model_copy(update=wish)
        return asyncio.create_task(self.update())

    async def update(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self._shown != self.experiment:
                self._shown = self.experiment
                await self._perform(self.experiment)
        finally:
            self._busy = False

    async def _perform(self, experiment: Experiment) -> None:
        try:
            finding = await self._laboratory.perform(experiment)
        except ExperimentError as error:
            self._fault.content = escape(str(error))
            return
        self._fault.content = ""
        self._verdict.content = verdict(finding, experiment)
        self._images.content = images(finding)
        self._plane.content = picture(finding)
        self._table.content = said(finding)

    def refuse(self, reason: str) -> None:
        self._fault.content = escape(reason)

    def take(self, data_url: str) -> None:
        """An image that the browser sends."""
        _, _, encoded = data_url.partition(DATA_URL)
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return self.refuse("this is no image file")
        if not 0 < len(data) <= MAX_FILE_BYTES:
            return self.refuse(f"an image file may take up to {words.size(MAX_FILE_BYTES)}")
        self.change(image=encoded)
