"""Images -> evidence, a batch at a time, so that memory does not grow with the set."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detectors.base import Evidence, gather_evidence
from model.image_set import ImageSet, to_unit
from model.network import Network

BATCH_SIZE = 256


class EvidenceBatches:
    """Evidence and labels, made anew each time they are gone through."""

    def __init__(self, network: Network, images: ImageSet, device: torch.device):
        self._network = network
        self._images = images
        self._device = device

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[tuple[Evidence, Int[Tensor, " n"]]]:
        labels = torch.split(self._images.labels, BATCH_SIZE)
        for batch, batch_labels in zip(batches(self._images.images), labels, strict=True):
            with torch.no_grad():
                evidence = gather_evidence(self._network, batch.to(self._device))
            yield evidence, batch_labels.to(self._device)


def batches(images: Tensor) -> Iterator[Float[Tensor, "n c h w"]]:
    """uint8 images as float batches in [0, 1]."""
    for chunk in torch.split(images, BATCH_SIZE):
        yield to_unit(chunk)
