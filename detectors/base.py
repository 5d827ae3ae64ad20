"""The contract of every detector, and what it judges: the evidence that one forward pass leaves."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.network import Network


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """One forward pass over images (n, c, h, w) in [0, 1].

    features (n, d); log_joint (n, k) in nats; taps: a tensor (n, channels) for each tapped layer, the means of
    its maps over the plane; network: what was asked, for detectors that ask it again about changed images.
    """

    images: Float[Tensor, "n c h w"]
    features: Float[Tensor, "n d"]
    log_joint: Float[Tensor, "n k"]
    taps: tuple[Float[Tensor, "n _"], ...]
    network: Network

    @property
    def class_index(self) -> Int[Tensor, " n"]:
        """The predicted class: argmax of the log joint."""
        return self.log_joint.argmax(1)


def gather_evidence(network: Network, images: Float[Tensor, "n c h w"]) -> Evidence:
    """Run the network once; differentiable in the images."""
    activations = network(images)
    return Evidence(
        images=images,
        features=activations.features,
        log_joint=activations.log_joint,
        taps=activations.taps,
        network=network,
    )


CleanBatches = Iterable[tuple[Evidence, Int[Tensor, " _"]]]


class Detector(nn.Module, ABC):
    """Judges evidence: one score a row, float, higher = more suspicious.

    A detector exists only fitted: `fit` makes it from clean data, its state lives in buffers and parameters,
    and `from_state` makes it again from them. Scores are differentiable in the images, or the
    detector's docstring states its differentiable stand-in, so that it can be attacked honestly. A row's score
    depends on its own image alone.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, batches: CleanBatches, *, generator: torch.Generator) -> "Detector":
        """The detector fitted on batches of clean evidence with their true labels (n,).

        The batches may be gone through several times; the generator (on the CPU) is the only source of chance.
        Raises CalibrationError where the data cannot carry the fit.
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Detector":
        """The detector again from what `state_dict` gave."""

    @abstractmethod
    def forward(self, evidence: Evidence) -> Float[Tensor, " n"]:
        """Scores, higher = more suspicious."""
