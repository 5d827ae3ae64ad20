"""A recalibrated screener -> a bundle of its own, with a card that says what is new and what was measured before."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectors.bundle import save_bundle
from detectors.manifest import CARD, Manifest, load_manifest
from detectors.recalibration import ClassChange, Recalibration
from detectors.screener import Screener
from model.errors import BundleError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What was added: the digest that names the images, from when to when they were judged, and the command."""

    digest: str
    since: str
    until: str
    command: str


def save_recalibrated(recalibration: Recalibration, former: Path, output: Path, source: Source) -> Screener:
    """Write it; the screener as loaded from there. Shares that were measured of the former are not taken over.

    Raises BundleError where something stands already.
    """
    manifest = load_manifest(former)
    reference = recalibration.screener.reference
    if reference is None:
        raise BundleError(f"{former} has no reference images")
    return save_bundle(
        recalibration.screener,
        output,
        network=manifest.network,
        mixture=manifest.mixture,
        reference_images=reference.images,
        split_digests={**manifest.split_digests, f"recalibration of {manifest.version}": source.digest},
        measured={
            **{name: value for name, value in manifest.measured.items() if name in ("accuracy", "num_images")},
            "recalibrated_from": manifest.version,
            "recalibration": [asdict(change) for change in recalibration.changes],
        },
        card=_card(manifest, (former / CARD).read_text(encoding="utf-8"), recalibration.changes, source),
        data=manifest.data,
    )


def _card(manifest: Manifest, former: str, changes: Sequence[ClassChange], source: Source) -> str:
    added = sum(change.num_added for change in changes)
    return "\n".join(
        [
            f"# {manifest.name}, recalibrated",
            "",
            f"Version {manifest.version} with {added:,} images of its own traffic added to its calibration: a blind "
            f"sample, judged from {source.since} to {source.until}, less what reviewers found adversarial or",
            "abnormal.",
            "Network and detectors are the same, and so is every class that it tells; verdicts near the threshold",
            "differ. Its share of false alarms was not measured anew.",
            "",
            "```sh",
            source.command,
            "```",
            "",
            "| class | calibrated on | sampled | of those flagged | added | threshold before | after (nats) |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {change.label} | {change.num_before:,} | {change.num_sampled:,} | {change.num_beyond:,} "
                f"| {change.num_added:,} | {change.threshold_before:.2f} | {change.threshold_after:.2f} |"
                for change in changes
            ),
            "",
            f"## The card of version {manifest.version}",
            "",
            former,
        ]
    )
