"""The card of a bundle: what it is, how it was made, what was measured. Markdown, for a person."""

from collections.abc import Mapping, Sequence

import torch

from detectors.measuring import Measured, Rate
from detectors.screener import Screener
from model.checkpoint import Checkpoint
from model.losses.known import RIVALS, title_of


def write_card(checkpoint: Checkpoint, measured: Measured, *, screener: Screener, commands: Sequence[str]) -> str:
    """The card's text; every figure in it was measured by the commands that it names."""
    return "\n".join(
        [
            f"# {screener.name}",
            "",
            *_introduction(checkpoint, screener),
            "",
            "## Made by",
            "",
            "```sh",
            *commands,
            "```",
            "",
            *_made_by(checkpoint),
            "",
            "## Measured",
            "",
            *_measured(checkpoint, measured, screener.false_alarm_rate),
            "",
            "A flag says that an input is unlike clean data. It promises nothing against an attacker, and the",
            "promise on false alarms holds for traffic like the calibration images, not for any other.",
            "",
        ]
    )


def _introduction(checkpoint: Checkpoint, screener: Screener) -> list[str]:
    channels, height, width = checkpoint.image_format.shape
    return [
        f"An image classifier with a likelihood: {len(checkpoint.class_names)} classes "
        f"({', '.join(checkpoint.class_names[:20])}{', ...' if len(checkpoint.class_names) > 20 else ''}), images of "
        f"{width} x {height} pixels with {channels} channel{'s' if channels > 1 else ''}, trained with "
        f"{_loss(checkpoint)} on {checkpoint.config.data.name}.",
        *_fitted_after(checkpoint),
        f"Flags at a promised false-alarm rate of {screener.false_alarm_rate:.2%} for each predicted class.",
        _calibrated(screener.calibration_sizes),
        f"The verdict fuses {_listed(screener.fusion.names)}{_beside(screener)}.",
    ]


def _calibrated(sizes: Mapping[str, int]) -> str:
    counts = sizes.values()
    return (
        f"Calibrated on {sum(counts):,} images, {min(counts):,} to {max(counts):,} of each predicted class; the "
        "share that is flagged keeps the promise on average over such draws, and strays the more the fewer they are."
    )


def _loss(checkpoint: Checkpoint) -> str:
    name = checkpoint.config.loss.name
    return "the L-GM loss" if name == "lgm" else f"the loss {name} ({title_of(name).partition(' (')[0]})"


def _fitted_after(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.config.loss.name not in RIVALS:
        return []
    return [
        "That loss models no density: class Gaussians were fitted after training, to the training images' features,",
        f"with {checkpoint.config.mixture.variance} variances. They tell the class, not the loss's own classifier.",
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _beside(screener: Screener) -> str:
    beside = [name for name in screener.detectors if name not in screener.fusion.names]
    return f"; {_listed(beside)} stand beside it" if beside else ""


def _made_by(checkpoint: Checkpoint) -> list[str]:
    training = checkpoint.config.training
    seconds = sum(row["seconds"] for row in checkpoint.history)
    parameters = sum(values.numel() for values in checkpoint.network.values())
    threads = " to ".join(f"{count:.0f}" for count in sorted({row["threads"] for row in checkpoint.history}))
    return [
        f"Seed {training.seed}, {training.epochs} epochs, {parameters:,} values, {seconds / 60:.1f} minutes of "
        f"training on {training.device} with {threads} thread(s), torch {torch.__version__}."
    ]


def _measured(checkpoint: Checkpoint, measured: Measured, false_alarm_rate: float) -> list[str]:
    data = f"{checkpoint.config.data.name}, test split"
    return [
        f"Accuracy {measured.accuracy:.2%} on {measured.num_images:,} images ({data}). No test image was used for",
        "training or fitting. Intervals are exact binomial (Clopper-Pearson), 95 %.",
        "",
        f"| {data} | images | flagged | share (promised: at most {false_alarm_rate:.2%}) | interval |",
        "| --- | --- | --- | --- | --- |",
        _row("all", measured.false_alarms),
        *(_row(f"predicted {name}", rate) for name, rate in measured.false_alarms_by_class.items()),
        "",
        *_abnormal(measured),
    ]


def _abnormal(measured: Measured) -> list[str]:
    if not measured.abnormal:
        return ["No abnormal images were measured."]
    return [
        "| abnormal images | images | flagged | share | interval |",
        "| --- | --- | --- | --- | --- |",
        *(_row(name, rate) for name, rate in measured.abnormal.items()),
    ]


def _row(name: str, rate: Rate) -> str:
    share = f"{rate.share:.2%}" if rate.num_images else "-"
    return f"| {name} | {rate.num_images:,} | {rate.num_flagged:,} | {share} | {rate.low:.2%} to {rate.high:.2%} |"
