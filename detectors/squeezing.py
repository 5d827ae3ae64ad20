"""The feature squeezing detector (Xu, Evans and Qi, NDSS 2018, arXiv 1704.01155).

Legend: n images, c channels, h w pixels, k classes. Squeezing takes from an image what a person does not miss; where
the answer hangs on that, the image is suspicious.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detectors.base import CleanBatches, Detector, Evidence
from model import gaussian
from model.errors import CalibrationError

BIT_DEPTHS = (1, 2, 3, 4, 5, 6, 7)
BITS_LOSS, MEDIAN_LOSS = 0.01, 0.2  # of accuracy on clean images, that fewer bits and the median may cost
IMAGES_PER_BATCH = 16  # on which squeezers are tried; some of every batch, since a set may be sorted by class
WINDOW = 2  # of the median, in pixels


class FeatureSqueezingDetector(Detector):
    """score = max over squeezers S of the L1 distance of posteriors |p(. | x) - p(. | S(x))|_1, in [0, 2].

    Squeezers: fewer bits a channel, and the median of 2 x 2 pixels. The paper takes 1 bit for MNIST and 5 for
    colour; here the fewest bits that cost at most one percentage point of accuracy on clean images. The median
    shows attacks even where it costs some accuracy (a tenth on CIFAR-10), and is left out only where it costs more
    than a fifth, as on images of 8 x 8 pixels. The paper's third squeezer, non-local means, is left out: a
    search of 13 x 13 patches for every pixel costs more than a small network.

    Differentiable stand-in: rounding to fewer bits passes gradients as the identity (straight-through). The
    median's gradient is its own, to the pixel that it chose.
    """

    name = "feature-squeezing"

    bits: Tensor
    smooths: Tensor

    def __init__(self, bits: Int[Tensor, ""], smooths: Bool[Tensor, ""]):
        super().__init__()
        self.register_buffer("bits", bits)
        self.register_buffer("smooths", smooths)

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "FeatureSqueezingDetector":
        right = torch.zeros(len(BIT_DEPTHS) + 2, dtype=torch.int64)
        count = 0
        for evidence, labels in batches:
            right += _num_right(evidence, labels[:IMAGES_PER_BATCH])
            count += len(labels[:IMAGES_PER_BATCH])
        if count == 0:
            raise CalibrationError("feature-squeezing: there is no clean image to choose squeezers by")
        smooths = right[1] >= right[0] - MEDIAN_LOSS * count
        able = right[2:] >= right[0] - BITS_LOSS * count
        fewest = next((bits for bits, enough in zip(BIT_DEPTHS, able, strict=True) if enough), BIT_DEPTHS[-1])
        return cls(torch.tensor(fewest), smooths)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "FeatureSqueezingDetector":
        return cls(state["bits"], state["smooths"])

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        posterior = gaussian.posterior(evidence.log_joint)
        squeezed = [reduce_bits(evidence.images, self.bits)]
        if self.smooths:
            squeezed.append(median_filter(evidence.images))
        answers = [gaussian.posterior(evidence.network(images).log_joint) for images in squeezed]
        return torch.stack([(posterior - answer).abs().sum(1) for answer in answers]).amax(0)


def reduce_bits(images: Float[Tensor, "n c h w"], bits: int | Int[Tensor, ""]) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1] rounded to 2^bits levels; gradients pass as if nothing had been done."""
    levels = 2**bits - 1
    rounded = (images * levels).round() / levels
    return rounded.detach() + (images - images.detach())


def median_filter(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Of each pixel, its left and upper neighbours and the one between them, the second largest; edges replicated.

    That is the median as scipy.ndimage.median_filter takes it of an even number.
    """
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (WINDOW - 1, 0, WINDOW - 1, 0), mode="replicate")
    windows = [padded[:, :, y : y + height, x : x + width] for y in range(WINDOW) for x in range(WINDOW)]
    return torch.stack(windows).sort(0).values[len(windows) // 2]


@torch.no_grad()
def _num_right(evidence: Evidence, labels: Int[Tensor, " n"]) -> Int[Tensor, " answers"]:
    """How many are classified rightly: as they are, by their medians, then at each bit depth."""
    images = evidence.images[: len(labels)]
    squeezed = [median_filter(images), *(reduce_bits(images, bits) for bits in BIT_DEPTHS)]
    answers = [evidence.network(changed).log_joint for changed in squeezed]
    found = torch.stack([evidence.log_joint[: len(labels)], *answers]).argmax(2)
    return (found == labels).sum(1).cpu()
