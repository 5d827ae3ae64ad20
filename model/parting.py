"""Parts of an image set: held back for calibration or tests, without some classes, or fewer of each."""

import hashlib

import torch

from model.errors import DataError
from model.image_set import ImageSet


def part(images: ImageSet, fraction: float, seed: int, purpose: str) -> tuple[ImageSet, ImageSet]:
    """Part each class by the same share, so that every class has its images for the purpose."""
    generator = torch.Generator().manual_seed(seed)
    kept, held = [], []
    for index, name in enumerate(images.class_names):
        members = torch.nonzero(images.labels == index).squeeze(1)
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            raise DataError(
                f"class {name!r} has {len(members)} images: too few to hold {fraction:.0%} back for {purpose}"
            )
        order = members[torch.randperm(len(members), generator=generator)]
        held.append(order[:count])
        kept.append(order[count:])
    return images.select(torch.cat(kept).sort().values), images.select(torch.cat(held).sort().values)


def part_by_content(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Part each class by what its images hold, about so many: those added later move none, and doubles stay together.

    Both sides have an image of every class.
    """
    key = seed.to_bytes(8, "little")
    texts = images.fingerprints().numpy().tobytes()
    digests = (hashlib.blake2b(texts[i : i + 8], digest_size=8, key=key).digest() for i in range(0, len(texts), 8))
    ranks = torch.tensor([int.from_bytes(digest, "little") / 2**64 for digest in digests], dtype=torch.float64)
    held = ranks < share
    for index, name in enumerate(images.class_names):
        members = torch.nonzero(images.labels == index).squeeze(1)
        if len(set(ranks[members].tolist())) < 2:
            raise DataError(
                f"class {name!r} has {len(members)} images, of which no two differ: too few to hold {share:.0%} back "
                "for the test set"
            )
        order = members[ranks[members].argsort()]
        held[ranks == ranks[order[0]]] = True
        held[ranks == ranks[order[-1]]] = False
    return images.select(torch.nonzero(~held).squeeze(1)), images.select(torch.nonzero(held).squeeze(1))


def without(images: ImageSet, left_out: tuple[str, ...]) -> ImageSet:
    """The images of the other classes, which keep their order. Raises DataError for a class that is not there."""
    for name in left_out:
        if name not in images.class_names:
            raise DataError(f"data.left_out: there is no class {name!r}; there are {', '.join(images.class_names)}")
    if not left_out:
        return images
    kept = [index for index, name in enumerate(images.class_names) if name not in left_out]
    renamed = torch.full((len(images.class_names),), -1)
    renamed[torch.tensor(kept, dtype=torch.int64)] = torch.arange(len(kept))
    labels = renamed[images.labels]
    rows = torch.nonzero(labels >= 0).squeeze(1)
    names = tuple(images.class_names[index] for index in kept)
    return ImageSet(images=images.images[rows], labels=labels[rows], class_names=names)


def thinned(images: ImageSet, num_images: int | None, seed: int) -> ImageSet:
    """So many of them, of each class the same share. Raises DataError where a class would be left with none."""
    if num_images is None or num_images >= len(images):
        return images
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for index, name in enumerate(images.class_names):
        members = torch.nonzero(images.labels == index).squeeze(1)
        count = round(num_images / len(images) * len(members))
        if count == 0:
            raise DataError(f"data.num_images: {num_images} of {len(images)} images leave class {name!r} without any")
        kept.append(members[torch.randperm(len(members), generator=generator)][:count])
    return images.select(torch.cat(kept).sort().values)
