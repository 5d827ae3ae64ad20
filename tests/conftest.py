"""What many tests share: a small real run on scikit-learn's digits, and the bundle fitted from it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

from detectors import SHIPPED_BUNDLE, Screener, load_bundle
from detectors.bundle import save_bundle
from detectors.card import write_card
from detectors.fitting import fit_screener
from detectors.measuring import measure
from model.checkpoint import Checkpoint
from model.config import Config, parse_config
from model.train import train
from model.training_log import Silent
from tests.object_store import ENVIRONMENT, ObjectStore
from tests.postgresql import Cluster

# Servers that are started as they come keep what they flag somewhere, and it must not be the user's own folder.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lgm-state-")

# Small networks gain nothing from more, and the order of summation, so the network they learn, depends on it.
torch.set_num_threads(1)

# The same examples each time, so that what was green stays so; `make test-slow` searches anew, and for longer.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("searching", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("repeatable")

# What is asserted of this network must hold of others: processors round differently, and another seed is another one.
SEED = int(os.environ.get("LGM_TEST_SEED", "1"))
DIGITS = {
    "name": "digits",
    "data": {"name": "digits", "calibration_fraction": 0.3},
    "network": {"backbone": "small28", "width": 8, "num_features": 16},
    "optimizer": {"learning_rate": 0.05},
    "training": {"epochs": 6, "batch_size": 32, "seed": SEED},
}


@pytest.fixture
def without_type_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user calls it: annotations are checked in tests alone, and would refuse before the code does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def digits_config() -> Config:
    return parse_config(DIGITS)


@pytest.fixture(scope="session")
def digits_run(digits_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(digits_config, folder, Silent(), command="lgm train digits.toml")
    return folder


@pytest.fixture(scope="session")
def digits_checkpoint(digits_run: Path) -> Checkpoint:
    from model.checkpoint import load_checkpoint

    return load_checkpoint(digits_run)


@pytest.fixture(scope="session")
def digits_bundle(digits_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle at a promised 5 %, images (1, 8, 8)."""
    path = tmp_path_factory.mktemp("bundles") / "digits"
    data = digits_checkpoint.config.data
    screener, splits, calibration = fit_screener(
        digits_checkpoint, data, false_alarm_rate=0.05, name="digits", device=torch.device("cpu")
    )
    measured = measure(screener, splits.test, {}, lambda done, total: None)
    save_bundle(
        screener,
        path,
        network=digits_checkpoint.config.network,
        mixture=digits_checkpoint.config.mixture,
        reference_images=calibration.images[:8],
        split_digests={"calibration": calibration.digest(), "test": splits.test.digest()},
        measured={"accuracy": measured.accuracy},
        card=write_card(digits_checkpoint, measured, screener=screener, commands=["lgm fit"]),
    )
    return path


@pytest.fixture(scope="session")
def digits_screener(digits_bundle: Path) -> Screener:
    return load_bundle(digits_bundle)


@pytest.fixture(scope="session")
def shipped_screener() -> Screener:
    return load_bundle(SHIPPED_BUNDLE)


@pytest.fixture(scope="session")
def data_directory() -> Path:
    """LGM_DATA_DIR with MNIST and Fashion-MNIST; tests that need it are marked `data`."""
    directory = os.environ.get("LGM_DATA_DIR")
    if not directory or not (Path(directory) / "MNIST" / "raw").is_dir():
        pytest.skip("LGM_DATA_DIR does not lead to MNIST")
    return Path(directory)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A private PostgreSQL."""
    folder = Path(tempfile.mkdtemp(prefix="lgm-pg-"))  # a socket's path must be short
    cluster = Cluster(folder)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """A private store that speaks S3, which the environment names to every client."""
    folder = Path(tempfile.mkdtemp(prefix="lgm-s3-"))
    store = ObjectStore(folder)
    try:
        store.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"AWS_ENDPOINT_URL": store.address, **ENVIRONMENT}.items():
                patch.setitem(os.environ, name, value)
            yield store
    finally:
        store.stop()
        shutil.rmtree(folder)


@pytest.fixture
def s3(object_store: ObjectStore) -> str:
    """Its address."""
    return object_store.address
