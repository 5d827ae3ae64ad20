"""Databases and stores of every kind: SQLite and a real PostgreSQL, a folder and a real S3 server."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest

from service.judgements import Floats
from service.quarantine.database import Database
from service.quarantine.files import write_image
from service.quarantine.identity import new_id
from service.quarantine.keeping import Kept, keep
from service.quarantine.quarantine import Quarantine
from service.quarantine.records import Item, State, Why
from service.quarantine.store import Store
from service.schemas import DetectorSays
from tests.postgresql import Cluster

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def bucket(s3: str, request: pytest.FixtureRequest) -> str:
    name = f"b{abs(hash(request.node.nodeid))}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    return f"s3://{name}/quarantine"


@pytest.fixture(params=["folder", "s3"])
def store_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "files")
    found: str = request.getfixturevalue("bucket")
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def database_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/rows.sqlite"
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.new_database()


@pytest.fixture
def database(database_address: str) -> Iterator[Database]:
    database = Database(database_address)
    yield database
    database.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "files"))


@pytest.fixture
def quarantine(database: Database, store: Store) -> Quarantine:
    return Quarantine(database, store)


class Keeping:
    """Keeps made-up items."""

    def __init__(self, database: Database, store: Store):
        self._database, self._store = database, store

    def __call__(self, image: Floats | None = None, *, minutes: float = 0, **members: object) -> Item:
        """One item, judged so many minutes after noon; of an image of its own unless one is given."""
        image = noise(int(minutes * 60)) if image is None else image
        kept = Kept(made_item(image, minutes=minutes, **members), write_image(image))
        keep(self._database, self._store, [kept])
        return kept.item


@pytest.fixture
def kept(database: Database, store: Store) -> Keeping:
    return Keeping(database, store)


def noise(seed: int, shape: tuple[int, ...] = (1, 8, 8)) -> Floats:
    levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image: Floats = np.divide(levels, 255, dtype=np.float32)
    return image


def made_item(image: Floats, *, minutes: float = 0, **members: object) -> Item:
    file, moment = write_image(image), NOON + timedelta(minutes=minutes)
    return Item.model_validate(
        {
            "id": new_id(moment),
            "request_id": "request",
            "digest": file.digest,
            "media_type": file.media_type,
            "num_bytes": len(file.content),
            "model_name": "digits",
            "model_version": "v1",
            "class_index": 7,
            "label": "7",
            "probability": 0.9,
            "log_likelihood": -12.5,
            "p_value": 0.004,
            "flagged": True,
            "false_alarm_rate": 0.05,
            "evidence": {"likelihood": DetectorSays(score=3.5, p_value=0.01)},
            "why": Why.FLAGGED,
            "principal": "ci-1",
            "judged_at": moment,
            "expires_at": moment + timedelta(days=36500),
            "state": State.NEW,
            "reviewer": None,
            "reason": None,
            "reviewed_at": None,
            "revision": 1,
            **members,
        }
    )
