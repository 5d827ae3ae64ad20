"""The residual detector: is there noise-like residue that clean images do not have?

Legend: n images, c channels, h w pixels, m maps. An attack spreads a perturbation of small amplitude and high
frequency over the image; high-pass filters take the content away that it hides behind.
"""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detectors.base import CleanBatches, Detector, Evidence
from model.errors import CalibrationError

# Residual models of steganalysis (Fridrich and Kodovsky 2012), scaled so that each passes noise at about its own
# amplitude: first differences to the right and down, second ones along both axes, and both at once.
HIGH_PASS = (
    ((0.0, 0.0, 0.0), (0.0, -1.0, 1.0), (0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, 0.0), (0.5, -1.0, 0.5), (0.0, 0.0, 0.0)),
    ((0.0, 0.5, 0.0), (0.0, -1.0, 0.0), (0.0, 0.5, 0.0)),
    ((-0.25, 0.5, -0.25), (0.5, -1.0, 0.5), (-0.25, 0.5, -0.25)),
)
KNEE = 3 / 255  # larger residuals are content rather than noise, and are compressed
WIDTHS = (16, 24, 24)

MAX_IMAGES, MAX_VALUES = 20_000, 1 << 26  # what is kept to train on: at most 256 MB
AMPLITUDES = (0.3 / 255, 80 / 255)  # of the noise, in units of [0, 1]: below one grey level up to MNIST's attacks
BATCH_SIZE, PASSES, MIN_STEPS = 64, 5, 300
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2


class ResidualDetector(Detector):
    """score = logit of "noise was added to this image", by three small convolutions over high-pass residuals.

    Trained to tell clean images from the same images with random noise (`add_noise`); no attack is ever seen.
    A residual r enters as r / (|r| + knee), whose gradient vanishes nowhere, so gradient attacks work honestly.
    """

    name = "residual"

    def __init__(self, num_channels: int, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        num_inputs = (len(HIGH_PASS) * num_channels, *widths)
        with torch.device("meta"):  # nothing is drawn here: weights come from a state or from the fit's generator
            self.convolutions = nn.ModuleList(
                nn.Conv2d(before, after, 3, stride=2, padding=1)
                for before, after in zip(num_inputs, widths, strict=False)
            )
            self.head = nn.Linear(widths[-1], 1)
        self.to_empty(device="cpu")
        filters = torch.tensor(HIGH_PASS).unsqueeze(1).repeat(num_channels, 1, 1, 1)
        self.register_buffer("filters", filters, persistent=False)

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "ResidualDetector":
        images = _sample_images(batches, generator)
        detector = cls(images.shape[1])
        detector._initialise(generator)
        with torch.enable_grad():
            _train(detector.to(images.device), images, generator)
        return detector.requires_grad_(False)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "ResidualDetector":
        count = len({name.split(".")[1] for name in state if name.startswith("convolutions")})
        weights = [state[f"convolutions.{at}.weight"] for at in range(count)]
        detector = cls(weights[0].shape[1] // len(HIGH_PASS), tuple(len(weight) for weight in weights))
        detector.load_state_dict(state)
        return detector.to(weights[0].device).requires_grad_(False)

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        return self.logits(evidence.images)

    def logits(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """log-odds that noise was added to images in [0, 1]."""
        with torch.autocast(images.device.type, enabled=False):
            maps = self.residuals(images.float())
            for convolution in self.convolutions:
                maps = torch.relu_(convolution(maps))
            return cast(Tensor, self.head(maps.mean((2, 3)))).squeeze(1)

    def residuals(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n m h w"]:
        """r / (|r| + knee) in (-1, 1) of every filter on every channel; edges are replicated, so flat stays zero."""
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        filtered = nn.functional.conv2d(padded, cast(Tensor, self.filters), groups=images.shape[1])
        return filtered / (filtered.abs() + KNEE)

    def _initialise(self, generator: torch.Generator) -> None:
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(cast(Tensor, convolution.weight), nonlinearity="relu", generator=generator)
            nn.init.zeros_(cast(Tensor, convolution.bias))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def add_noise(images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Images in [0, 1] with random noise, clamped to [0, 1]; kind and amplitude are drawn for each image.

    Half of them are rounded to 8 bits, as a file would be: it is the noise that must be told, not that
    values lie between the grey levels.
    """
    count = (len(images), 1, 1, 1)
    low, high = AMPLITUDES
    amplitude = low * (high / low) ** torch.rand(count, generator=generator)
    patterns = _patterns(images.shape, generator)
    kind = torch.randint(len(patterns), (len(images),), generator=generator)
    noise = amplitude * patterns[kind, torch.arange(len(images))]
    noisy = (images + noise.to(images)).clamp(0, 1)
    rounded = torch.rand(count, generator=generator) < 0.5
    return torch.where(rounded.to(images.device), (255 * noisy).round() / 255, noisy)


def _patterns(shape: torch.Size, generator: torch.Generator) -> Float[Tensor, "kinds n c h w"]:
    """Noise of every kind and amplitude one: white, smooth, alike in all channels, of low rank, sparse, local."""
    white = torch.randn(shape, generator=generator)
    uniform = torch.rand(shape, generator=generator)
    density = torch.rand((shape[0], 1, 1, 1), generator=generator)
    smooth = 3 * nn.functional.avg_pool2d(white, 3, stride=1, padding=1)
    weights = torch.rand((shape[0], 1, 4, 4), generator=generator)
    local = nn.functional.interpolate(weights, size=shape[2:], mode="bilinear")
    return torch.stack(
        [
            white.sign(),
            (1.2 * white).round().clamp(-1, 1),
            2 * uniform - 1,
            0.6 * white,
            smooth.clamp(-2, 2),
            smooth.sign(),
            white[:, :1].sign().expand(shape),
            white[:, :, :, :1] * white[:, :, :1, :],
            white.sign() * (uniform < density),
            white * white.abs() * local,
        ]
    )


def _sample_images(batches: CleanBatches, generator: torch.Generator) -> Float[Tensor, "m c h w"]:
    """A uniform sample without replacement of limited size, in one go through the batches (Vitter's algorithm R)."""
    kept: list[Tensor] = []
    seen = 0
    for evidence, _ in batches:
        limit = min(MAX_IMAGES, max(1, MAX_VALUES // evidence.images[0].numel()))
        for image in evidence.images.detach():
            seen += 1
            if len(kept) < limit:
                kept.append(image.clone())
            elif (slot := int(torch.randint(seen, (), generator=generator))) < limit:
                kept[slot] = image.clone()
    if not kept:
        raise CalibrationError("residual: there is no clean image to fit on")
    return torch.stack(kept)


def _train(detector: ResidualDetector, images: Float[Tensor, "n c h w"], generator: torch.Generator) -> None:
    """AdamW under one cycle; every batch holds each of its images clean and noisy."""
    batch_size = min(BATCH_SIZE, len(images))
    num_steps = max(MIN_STEPS, PASSES * math.ceil(len(images) / batch_size))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.2)
    targets = torch.arange(2.0, device=images.device).repeat_interleave(batch_size)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(num_steps):
        if len(order) < batch_size:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[:batch_size].to(images.device), order[batch_size:]
        clean = images[rows]
        logits = detector.logits(torch.cat([clean, add_noise(clean, generator)]))
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
