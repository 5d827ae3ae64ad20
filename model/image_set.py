"""Images with labels and the names of their classes, held in memory."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSet:
    """Images (n, c, h, w) uint8, labels (n,) int64, and the names of the k classes."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Int[Tensor, " m"]) -> "ImageSet":
        """Those rows."""
        return ImageSet(images=self.images[indices], labels=self.labels[indices], class_names=self.class_names)

    def fingerprints(self) -> Int[Tensor, " n"]:
        """64 bits of BLAKE2 of each image's pixels: tells whether an image was seen before."""
        rows = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in self.images.numpy())
        return torch.from_numpy(np.frombuffer(b"".join(rows), dtype=np.int64).copy())

    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels: names a split so that another cannot be taken for it."""
        return digest_of(self.images, self.labels)


def join(first: ImageSet, second: ImageSet) -> ImageSet:
    """Both sets, one after the other."""
    return ImageSet(
        images=torch.cat([first.images, second.images]),
        labels=torch.cat([first.labels, second.labels]),
        class_names=first.class_names,
    )


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 over the first one's shape and the bytes of all."""
    digest = hashlib.sha256(repr(tuple(tensors[0].shape)).encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def to_unit(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """uint8 -> float32 in [0, 1]."""
    return images.float().div_(255)
