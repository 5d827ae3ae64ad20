"""Where a quarantine is: by the settings, in a service's state folder, or by URL."""

from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingsError
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Place:
    """database: a URL; store: a folder or a URL."""

    database: str
    store: str


def place_of(settings: Settings) -> Place:
    inside = _inside(settings.state_folder)
    return Place(settings.quarantine_database or inside.database, settings.quarantine_store or inside.store)


def place_of_folder(folder: Path) -> Place:
    """Of a service that has been there. Raises SettingsError."""
    if not _file(folder).is_file():
        raise SettingsError(f"{folder} is no state folder of a service: it holds no {_file(folder).name}")
    return _inside(folder)


def _inside(folder: Path) -> Place:
    return Place(f"sqlite:///{_file(folder).absolute()}", str((folder / "quarantine").absolute()))


def _file(folder: Path) -> Path:
    return folder / "quarantine.sqlite"
