"""The playground's other process: started at the first experiment, ended when nobody has made one for a while."""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

from service.dashboard.findings import ANSWER, Experiment, Finding, Refusal, Sample, Samples, SamplesWanted
from service.dashboard.options import Options

IDLE_SECONDS = 300.0
TIMEOUT_SECONDS = 60.0  # the first one loads a network
MAX_LINE_BYTES = 8 * 1024 * 1024
MANIFEST = "bundle.json"


class ExperimentError(Exception):
    """What was asked cannot be tried; says why."""


class Laboratory:
    def __init__(self, options: Options):
        self._options = options
        self._process: asyncio.subprocess.Process | None = None
        self._busy = asyncio.Lock()
        self._asked: set[asyncio.Task[Finding | Samples]] = set()
        self._idle: asyncio.TimerHandle | None = None

    def bundle_of(self, name: str, version: str) -> Path | None:
        """The folder of that version, if it lies here."""
        return next((folder for folder in self._folders() if _identity(folder) == (name, version)), None)

    def first_bundle(self) -> Path | None:
        return next((folder for folder in self._folders() if _identity(folder) is not None), None)

    async def perform(self, experiment: Experiment) -> Finding:
        """Raises ExperimentError."""
        answer = await self._ask(experiment)
        assert isinstance(answer, Finding)
        return answer

    async def samples(self, bundle: Path) -> tuple[Sample, ...]:
        """Raises ExperimentError."""
        answer = await self._ask(SamplesWanted(bundle=bundle))
        assert isinstance(answer, Samples)
        return answer.samples

    async def _ask(self, question: Experiment | SamplesWanted) -> Finding | Samples:
        """To its end, even if nobody waits any more: else the next one would read this one's answer."""
        asked = asyncio.create_task(self._ask_alone(question))
        self._asked.add(asked)
        asked.add_done_callback(self._asked.discard)
        return await asyncio.shield(asked)

    async def _ask_alone(self, question: Experiment | SamplesWanted) -> Finding | Samples:
        async with self._busy:
            self._stay()
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    line = await self._exchange(question.model_dump_json().encode() + b"\n")
            except (TimeoutError, ConnectionError, ValueError):
                line = b""
            if not line:
                self.close()
                raise ExperimentError("the process that attacks has ended or hung; it is started again")
        answer = ANSWER.validate_json(line)
        if isinstance(answer, Refusal):
            raise ExperimentError(answer.error)
        return answer

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()

    async def _exchange(self, line: bytes) -> bytes:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "service.dashboard.experiment"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()
        return await self._process.stdout.readline()

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self.close)

    def _folders(self) -> list[Path]:
        models = self._options.models
        further = [] if models is None else sorted(path.parent for path in models.glob(f"*/{MANIFEST}"))
        return [*self._options.bundles, *further]


def _identity(folder: Path) -> tuple[str, str] | None:
    """Name and version as its manifest says; whether they are true is checked where it is loaded."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return str(manifest["name"]), str(manifest["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
