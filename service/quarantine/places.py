"""Where the quarantine is, by the settings."""

from service.settings import Settings


def database_address(settings: Settings) -> str:
    return settings.quarantine_database or f"sqlite:///{(settings.state_folder / 'quarantine.sqlite').absolute()}"


def store_address(settings: Settings) -> str:
    return settings.quarantine_store or str((settings.state_folder / "quarantine").absolute())
