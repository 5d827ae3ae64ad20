"""The bundles that could be loaded: those in the settings' folders."""

from dataclasses import dataclass
from pathlib import Path

from detectors.manifest import MANIFEST, Manifest, load_manifest
from model.errors import BundleError
from service.settings import Settings

Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Offers:
    """What lies in the settings' folders: bundles by name and version, and why others are none, by folder."""

    bundles: dict[Key, tuple[Path, Manifest]]
    faults: dict[str, str]


def find_offers(settings: Settings) -> Offers:
    """Read anew."""
    folders = [settings.bundle]
    if settings.models is not None:
        folders += sorted(path.parent for path in settings.models.glob(f"*/{MANIFEST}"))
    bundles, faults = {}, {}
    for folder in folders:
        try:
            manifest = load_manifest(folder)
            bundles[manifest.name, manifest.version] = folder, manifest
        except BundleError as error:
            faults[folder.name] = str(error).replace(f"{folder.parent}/", "")
    return Offers(bundles=bundles, faults=faults)
