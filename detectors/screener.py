"""network + detectors + calibration: images in, verdicts out. The main door for whoever serves."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from detectors.base import Detector, Evidence, gather_evidence
from detectors.calibration import ConformalCalibration
from detectors.fusion import Fusion, combine, stack_rows
from model import gaussian
from model.errors import BundleError, ImageError
from model.image_set import to_unit
from model.images import ImageFormat
from model.network import Network

# Relative: what another processor's order of summation may change. The fused score sums steep functions of scores.
LIKELIHOOD_TOLERANCE = 1e-4
SUSPICION_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorEvidence:
    """One detector's say on n images: score (higher = more suspicious), p_value (small = suspicious)."""

    score: Float[Tensor, " n"]
    p_value: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """What is said of n images.

    class_index (n,) int64; probabilities (n, k) summing to one; log_likelihood (n,) in nats, higher = more
    likely; suspicion (n,) the fused score, higher = more suspicious; p_value (n,) of it, in (0, 1];
    flagged (n,) = p_value <= the bundle's false-alarm rate; evidence by detector.
    """

    class_index: Int[Tensor, " n"]
    probabilities: Float[Tensor, "n k"]
    log_likelihood: Float[Tensor, " n"]
    suspicion: Float[Tensor, " n"]
    p_value: Float[Tensor, " n"]
    flagged: Bool[Tensor, " n"]
    evidence: dict[str, DetectorEvidence]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Images (n, c, h, w) uint8 and what was said of them when the bundle was made."""

    images: UInt8[Tensor, "n c h w"]
    class_index: Int[Tensor, " n"]
    log_likelihood: Float[Tensor, " n"]
    suspicion: Float[Tensor, " n"]


class Screener(nn.Module):
    """Judges images (n, c, h, w) in [0, 1]: class, likelihood and a calibrated p-value of each.

    On clean traffic like the calibration set at most `false_alarm_rate` of each predicted class is flagged.
    fusion names the detectors that decide together; others are evidence beside the verdict. calibration has a row for
    each detector and class, the first detector's classes, then the next one's, and last the verdict's.
    """

    def __init__(
        self,
        network: Network,
        detectors: list[Detector],
        fusion: Fusion,
        calibration: ConformalCalibration,
        *,
        labels: tuple[str, ...],
        image_format: ImageFormat,
        false_alarm_rate: float,
        name: str,
        version: str = "unsaved",
        reference: Reference | None = None,
    ):
        super().__init__()
        self.network = network
        self.detectors = nn.ModuleDict({detector.name: detector for detector in detectors})
        self.fusion = fusion
        self.calibration = calibration
        self.labels = labels
        self.image_format = image_format
        self.false_alarm_rate = false_alarm_rate
        self.name = name
        self.version = version
        self.reference = reference
        self.eval()

    def train(self, mode: bool = True) -> "Screener":
        """Stays in evaluation mode, whatever a module around it does: it judges as it was calibrated."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where images are judged; those that lie elsewhere are moved."""
        return self.network.mixture.means.device

    @torch.inference_mode()
    def screen(self, images: Tensor) -> Verdicts:
        """Judge a batch (n, c, h, w).

        Raises ImageError naming the image and the limit: shape, not floats, NaN, outside [0, 1], empty.
        """
        check_images(images, self.image_format.shape)
        evidence = self.gather(images)
        class_index = evidence.class_index
        scores = {name: detector(evidence) for name, detector in self.detectors.items()}
        suspicion = self.fusion(scores, class_index)
        stacked, rows = stack_rows([*scores.values(), suspicion], class_index, len(self.labels))
        *p_values, p_value = self.calibration(stacked, rows).view(len(scores) + 1, -1)
        return Verdicts(
            class_index=class_index,
            probabilities=gaussian.posterior(evidence.log_joint),
            log_likelihood=gaussian.log_likelihood(evidence.log_joint),
            suspicion=suspicion,
            p_value=p_value,
            flagged=p_value <= self.false_alarm_rate,
            evidence={
                name: DetectorEvidence(score=score, p_value=said)
                for (name, score), said in zip(scores.items(), p_values, strict=True)
            },
        )

    def suspicion(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The fused score before the p-value, in nats, higher = more suspicious, differentiable in the images."""
        return self.suspect(self.gather(images))

    def suspect(self, evidence: Evidence) -> Float[Tensor, " n"]:
        """The fused score of evidence that was gathered already; only detectors that decide are asked."""
        return combine(self.surprises(evidence))

    def surprises(self, evidence: Evidence) -> Float[Tensor, "e n"]:
        """What each detector that decides makes of the evidence, in nats; who sees inside attacks these."""
        scores = {name: self.detectors[name](evidence) for name in self.fusion.names}
        return self.fusion.surprises(scores, evidence.class_index)

    def p_value(self, suspicion: Float[Tensor, " n"], class_index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The verdict's p-value of fused scores and predicted classes; small = suspicious. Without a gradient."""
        return cast(Tensor, self.calibration(suspicion, class_index + len(self.detectors) * len(self.labels)))

    @property
    def calibration_sizes(self) -> dict[str, int]:
        """How many clean images of each predicted class the verdict is calibrated on."""
        counts = self.calibration.counts_by_class[-len(self.labels) :]
        return dict(zip(self.labels, counts, strict=True))

    def self_test(self) -> None:
        """Judge the reference images again. Raises BundleError unless their scores are reproduced."""
        if self.reference is None:
            raise BundleError(f"bundle {self.name} {self.version} has no reference scores")
        verdicts = self.screen(to_unit(self.reference.images))
        where = f"bundle {self.name} {self.version} does not reproduce its reference scores on {self.device}"
        if not torch.equal(verdicts.class_index, self.reference.class_index.to(self.device)):
            raise BundleError(f"{where}: a predicted class differs")
        for said, found, stored, tolerance in (
            ("log-likelihoods", verdicts.log_likelihood, self.reference.log_likelihood, LIKELIHOOD_TOLERANCE),
            ("suspicions", verdicts.suspicion, self.reference.suspicion, SUSPICION_TOLERANCE),
        ):
            expected = stored.to(self.device)
            if not torch.allclose(found, expected, rtol=tolerance, atol=10 * tolerance):
                worst = float((found - expected).abs().max())
                raise BundleError(f"{where}: {said} differ by up to {worst:.3g} nats")

    def gather(self, images: Float[Tensor, "n c h w"]) -> Evidence:
        """One forward pass over images on the screener's device, differentiable in them."""
        return gather_evidence(self.network, images.to(self.device, torch.float32))


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises ImageError unless images are floats (n >= 1, *shape), all finite and in [0, 1]."""
    if not isinstance(images, Tensor):
        raise ImageError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.ndim != 4 or tuple(images.shape[1:]) != shape or len(images) == 0:
        raise ImageError(f"images must have shape (n >= 1, {', '.join(map(str, shape))}), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ImageError(f"images must be floats in [0, 1], got {images.dtype}; divide bytes by 255")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # false for NaN as well
        wrong = ~((images >= 0) & (images <= 1)).flatten(1).all(1)
        raise ImageError(f"images[{int(wrong.nonzero()[0])}] has values that are not in [0, 1]")
