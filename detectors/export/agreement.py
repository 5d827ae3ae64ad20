"""Whether an exported graph says what its bundle says, image by image."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
from jaxtyping import Float
from torch import Tensor

from detectors.export.formats import Run
from detectors.export.graph import Answers
from detectors.screener import Screener, Verdicts
from model.errors import BundleError, ExportError
from model.image_set import to_unit

BATCH_SIZES = (1, 7, 64)
LIKELIHOOD_TOLERANCE = 1e-4  # relative, to at least one nat
TIE_TOLERANCE = 1e-3  # of the suspicion, relative to at least one nat: calibration scores so near are ties
AMPLITUDES = (0.0, 0.02, 0.1, 0.3, 1.0)  # of the noise that makes further images of the reference ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How far a graph and its bundle differ over num_images images.

    log_likelihood_error: the greatest relative one. A p-value is a count of calibration scores: num_p_values_differ
    tells how many counts differ, p_value_error by how much at most, and num_p_values_wrong how many of
    them no tie with a calibration score explains.
    """

    num_images: int
    batch_sizes: tuple[int, ...]
    num_classes_differ: int
    log_likelihood_error: float
    probability_error: float
    num_p_values_differ: int
    num_p_values_wrong: int
    p_value_error: float
    num_flags_differ: int

    def describe(self) -> str:
        """The figures in one line."""
        return (
            f"on {self.num_images} images {self.num_classes_differ} classes differ, log-likelihoods by at most "
            f"{self.log_likelihood_error:.1e} of their size, {self.num_p_values_differ} p-values by at most "
            f"{self.p_value_error:.2g}, {self.num_flags_differ} flags"
        )

    def check(self) -> None:
        """Raises ExportError where the graph is not its bundle's."""
        faults = []
        if self.num_classes_differ:
            faults.append(f"{self.num_classes_differ} predicted classes differ")
        if not self.log_likelihood_error <= LIKELIHOOD_TOLERANCE:  # true of NaN as well
            faults.append(f"log-likelihoods differ by up to {self.log_likelihood_error:.2g} of their size")
        if self.num_p_values_wrong:
            faults.append(
                f"{self.num_p_values_wrong} p-values differ by more than ties, up to {self.p_value_error:.2g}"
            )
        if faults:
            raise ExportError(
                f"the exported graph and its bundle differ on {self.num_images} images: {', '.join(faults)}"
            )


def compare(screener: Screener, run: Run, images: Float[Tensor, "n c h w"]) -> Agreement:
    """Ask both about images in [0, 1], the graph in batches of 1, 7, 64, 1 and so on."""
    found = _joined([run(batch) for batch in _batches(images)])
    expected = screener.screen(images)
    low, high = _explained_p_values(screener, expected)
    explained = (
        (found.p_value >= low) & (found.p_value <= high) & (expected.p_value >= low) & (expected.p_value <= high)
    )
    size = expected.log_likelihood.abs().clamp_min(1)
    return Agreement(
        num_images=len(images),
        batch_sizes=BATCH_SIZES,
        num_classes_differ=int((found.class_index != expected.class_index).sum()),
        log_likelihood_error=float(((found.log_likelihood - expected.log_likelihood).abs() / size).max()),
        probability_error=float((found.probabilities - expected.probabilities).abs().max()),
        num_p_values_differ=int((found.p_value != expected.p_value).sum()),
        num_p_values_wrong=int((~explained).sum()),
        p_value_error=float((found.p_value - expected.p_value).abs().max()),
        num_flags_differ=int((found.flagged != expected.flagged).sum()),
    )


def sample_images(screener: Screener, count: int) -> Float[Tensor, "n c h w"]:
    """The bundle's reference images, as they are and under noise, for want of real data; the same each time.

    Raises BundleError for a bundle without reference images.
    """
    if screener.reference is None:
        raise BundleError(f"bundle {screener.name} {screener.version} has no reference images")
    reference = to_unit(screener.reference.images.cpu())
    images = reference.repeat(-(-count // len(reference)), 1, 1, 1)[:count]
    amplitudes = torch.tensor(AMPLITUDES).repeat_interleave(len(reference))
    amplitudes = amplitudes.repeat(-(-count // len(amplitudes)))[:count].view(-1, 1, 1, 1)
    noise = 2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 1
    return (images + amplitudes * noise).clamp(0, 1)


def _batches(images: Float[Tensor, "n c h w"]) -> Iterator[Tensor]:
    sizes, start = cycle(BATCH_SIZES), 0
    while start < len(images):
        size = next(sizes)
        yield images[start : start + size]
        start += size


def _joined(parts: list[Answers]) -> Answers:
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _explained_p_values(screener: Screener, said: Verdicts) -> tuple[Tensor, Tensor]:
    """The least and greatest p-value that the bundle gives to suspicions within the tolerance of its own."""
    slack = TIE_TOLERANCE * said.suspicion.abs().clamp_min(1)
    low, high = (screener.p_value(said.suspicion + change, said.class_index) for change in (slack, -slack))
    return low, high
