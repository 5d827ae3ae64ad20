from pathlib import Path

import pytest

from tests.model.small_runs import TOML


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """The file of a tiny run."""
    path = tmp_path / "tiny.toml"
    path.write_text(TOML)
    return path
