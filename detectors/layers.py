"""The layers detector: class-conditional Gaussians with one covariance over what every tapped layer saw.

Legend: n images, k classes, m channels of a layer. An attack that leads the last layer to a wrong class has the
first layers still see the right one, whatever the last layer's likelihood says.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detectors.base import CleanBatches, Detector, Evidence
from model.errors import CalibrationError

RIDGE = 1e-3  # of the mean variance of a layer's channels: keeps the covariance regular where channels are dead


class LayerGaussians(nn.Module):
    """One Gaussian a class over one layer, sharing a covariance.

    means (k, m); whitening (m, m) with whitening^T whitening the precision; centre and spread, scalars: mean and
    deviation of clean distances.
    """

    means: Tensor
    whitening: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, means: Tensor, whitening: Tensor, centre: Tensor, spread: Tensor):
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("whitening", whitening)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)

    def distances(self, outputs: Float[Tensor, "n m"], class_index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """(t - mu_c)^T Sigma^-1 (t - mu_c) / 2 of outputs t and their class c, in nats."""
        difference = outputs - self.means[class_index]
        return 0.5 * (difference @ self.whitening.T).square().sum(1)

    def forward(self, outputs: Float[Tensor, "n m"], class_index: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Distances in clean deviations from the clean mean, so that layers of any width weigh the same."""
        return (self.distances(outputs, class_index) - self.centre) / self.spread


class LayersDetector(Detector):
    """score = sum over layers of the standardised Mahalanobis distance to the predicted class.

    Lee et al. 2018 (arXiv 1807.03888) take the nearest class of each layer and weigh layers by a regression
    on attack samples. Here the class is the predicted one, so that layers which disagree with the verdict
    are evidence against it, and no attack sample is seen. Layers: the taps, then the features.
    """

    name = "layers"
    all_means: Tensor
    offset: Tensor

    def __init__(self, layers: list[LayerGaussians]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._fold(layers)

    @classmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "LayersDetector":
        moments = _gather_moments(batches)
        layers = [_Moments.gaussians(of) for of in moments]
        distances: list[list[Tensor]] = [[] for _ in layers]
        for evidence, labels in batches:
            for found, layer, outputs in zip(distances, layers, _outputs(evidence), strict=True):
                found.append(layer.distances(outputs, labels))
        for found, layer in zip(distances, layers, strict=True):
            spread, centre = torch.std_mean(torch.cat(found))
            layer.centre, layer.spread = centre, spread.clamp_min(torch.finfo(spread.dtype).tiny)
        return cls(layers)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "LayersDetector":
        count = len({name.split(".")[1] for name in state})
        names = ("means", "whitening", "centre", "spread")
        return cls([LayerGaussians(*(state[f"layers.{at}.{name}"] for name in names)) for at in range(count)])

    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        """Sum of the layers' own scores; all of them in one subtraction and one sum, since a call costs as much."""
        seen = torch.cat(_outputs(evidence), 1) - self.all_means[evidence.class_index]
        parts = torch.split(seen, self._widths, 1)
        whitened = torch.cat([part @ getattr(self, f"scaled_{at}") for at, part in enumerate(parts)], 1)
        return whitened.square().sum(1) - self.offset

    def _fold(self, layers: list[LayerGaussians]) -> None:
        """(t - mu)^T Sigma^-1 (t - mu) / 2 / spread as one square: the factor goes into the whitening."""
        self._widths = [layer.means.shape[1] for layer in layers]
        offset = torch.stack([layer.centre / layer.spread for layer in layers]).sum()
        self.register_buffer("all_means", torch.cat([layer.means for layer in layers], 1), persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        for at, layer in enumerate(layers):
            scaled = layer.whitening * (2 * layer.spread).rsqrt()
            self.register_buffer(f"scaled_{at}", scaled.T.contiguous(), persistent=False)


class _Moments:
    """Counts, sums and products of one layer's outputs, in float64, batch by batch."""

    def __init__(self, num_classes: int, num_channels: int, device: torch.device):
        self.counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
        self.sums = torch.zeros(num_classes, num_channels, dtype=torch.float64, device=device)
        self.products = torch.zeros(num_channels, num_channels, dtype=torch.float64, device=device)

    def add(self, outputs: Float[Tensor, "n m"], labels: Int[Tensor, " n"]) -> None:
        wide = outputs.double()
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        self.sums.index_add_(0, labels, wide)
        self.products.addmm_(wide.T, wide)

    def gaussians(self) -> LayerGaussians:
        """A class without an image gets the mean over all, so that nothing is like it by chance."""
        overall = self.sums.sum(0) / self.counts.sum()
        counts = self.counts.unsqueeze(1)
        means = torch.where(counts > 0, self.sums / counts.clamp_min(1), overall)
        scatter = self.products - (means * counts).T @ means
        covariance = scatter / self.counts.sum()
        ridge = RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).eps)
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(covariance))
        identity = torch.eye(len(factor)).to(factor)
        whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
        one = torch.ones((), device=means.device)
        return LayerGaussians(means.float(), whitening.float(), torch.zeros_like(one), one)


def _gather_moments(batches: CleanBatches) -> list[_Moments]:
    moments: list[_Moments] = []
    for evidence, labels in batches:
        outputs = _outputs(evidence)
        if not moments:
            num_classes = evidence.log_joint.shape[1]
            moments = [_Moments(num_classes, layer.shape[1], layer.device) for layer in outputs]
        for found, layer in zip(moments, outputs, strict=True):
            found.add(layer, labels)
    if not moments:
        raise CalibrationError("layers: there is no clean image to fit on")
    return moments


def _outputs(evidence: Evidence) -> list[Tensor]:
    return [*evidence.taps, evidence.features]
