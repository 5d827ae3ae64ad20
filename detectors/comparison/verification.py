"""Are two images of one class? The pairs protocol of LFW, for classes never trained on.

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", 2007: ten folds of pairs; a threshold on the
similarity from nine of them, accuracy on the tenth, ten times. Letters: n images, m pairs, d features.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from detectors.comparison.settings import ComparisonError

NUM_FOLDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Rows of two images each, whether they are of one class, and the fold of each pair."""

    first: Int[np.ndarray, " m"]
    second: Int[np.ndarray, " m"]
    same: Bool[np.ndarray, " m"]
    fold: Int[np.ndarray, " m"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Mean accuracy over the folds with its standard error, and true-positive rates at small false-positive ones."""

    accuracy: float
    standard_error: float
    tpr_at_fpr_1: float
    tpr_at_fpr_01: float


def draw_pairs(labels: Int[np.ndarray, " n"], count: int, *, seed: int) -> Pairs:
    """Half of the pairs of one class, half of two, evenly over ten folds; no image is paired with itself.

    Raises ComparisonError unless there are two classes of two images or more.
    """
    generator = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    if len(classes) < 2 or sizes.min() < 2:
        raise ComparisonError("pairs need at least two classes of two images each")
    members = [np.flatnonzero(labels == label) for label in classes]
    found = np.empty((count, 2), dtype=np.int64)
    same = np.arange(count) % 2 == 0
    for row in range(count):
        if same[row]:
            found[row] = generator.choice(members[generator.integers(len(members))], 2, replace=False)
        else:
            one, other = generator.choice(len(members), 2, replace=False)
            found[row] = generator.choice(members[one]), generator.choice(members[other])
    fold = np.arange(count) // 2 % NUM_FOLDS
    return Pairs(first=found[:, 0], second=found[:, 1], same=same, fold=fold)


def read_pairs(path: Path, folder: Path) -> tuple[list[Path], Pairs]:
    """LFW's pairs.txt: the images that it names, below `folder`, and the pairs of them.

    A line "name i j" is a pair of one person, "name i other j" of two; the first line says how many folds there are
    and how many pairs of each kind a fold has. Raises ComparisonError naming the line or fold that is not so.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ComparisonError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ComparisonError(f"{path} is not text in UTF-8") from None
    num_folds, size = _head(path, lines[:1])
    images: dict[Path, int] = {}
    rows: list[tuple[int, int, bool]] = []
    for number, line in enumerate(lines[1:], 2):
        words = line.split("\t") if "\t" in line else line.split()
        match words:
            case [name, i, j] if i.isdecimal() and j.isdecimal():
                named = [(name, i), (name, j)]
            case [name, i, other, j] if i.isdecimal() and j.isdecimal():
                named = [(name, i), (other, j)]
            case []:
                continue
            case _:
                raise ComparisonError(f"{path}, line {number}: neither 'name i j' nor 'name i other j'")
        one, two = (images.setdefault(_image(folder, *image), len(images)) for image in named)
        rows.append((one, two, len(words) == 3))
    if len(rows) != 2 * num_folds * size:
        raise ComparisonError(f"{path} promises {2 * num_folds * size} pairs and has {len(rows)}")
    first, second, same = (np.array(column) for column in zip(*rows, strict=True))
    for fold, alike in enumerate(same.reshape(num_folds, -1).sum(1), 1):
        if alike != size:
            raise ComparisonError(
                f"{path}: fold {fold} must hold {size} pairs of each kind, it has {alike} of one person"
            )
    pairs = Pairs(first=first, second=second, same=same, fold=np.arange(len(rows)) // (2 * size))
    return list(images), pairs


def verify(similarity: Float[np.ndarray, " m"], pairs: Pairs) -> Verification:
    """The protocol on similarities of the pairs, higher = more alike."""
    accuracies = []
    for fold in np.unique(pairs.fold):
        held = pairs.fold == fold
        threshold = best_threshold(similarity[~held], pairs.same[~held])
        accuracies.append(np.mean((similarity[held] >= threshold) == pairs.same[held]))
    spread = float(np.std(accuracies, ddof=1) / np.sqrt(len(accuracies)))
    alike, unlike = similarity[pairs.same], similarity[~pairs.same]
    return Verification(
        accuracy=float(np.mean(accuracies)),
        standard_error=spread,
        tpr_at_fpr_1=_rate(alike, unlike, 0.01),
        tpr_at_fpr_01=_rate(alike, unlike, 0.001),
    )


def best_threshold(similarity: Float[np.ndarray, " m"], same: Bool[np.ndarray, " m"]) -> float:
    """The found similarity at or above which calling pairs alike errs least; the lowest of several such."""
    order = np.argsort(similarity, kind="stable")
    values, kinds = similarity[order], same[order]
    missed = np.concatenate([[0], np.cumsum(kinds)[:-1]])  # alike below each value
    wrong = (~kinds).sum() - np.concatenate([[0], np.cumsum(~kinds)[:-1]])  # unlike at or above it
    first = np.concatenate([[True], np.diff(values) > 0])  # equal similarities cannot be parted
    errors = np.where(first, missed + wrong, len(values) + 1)
    return float(values[np.argmin(errors)])


def cosine_similarity(features: Float[np.ndarray, "n d"], pairs: Pairs) -> Float[np.ndarray, " m"]:
    """cos of the angle between the features of each pair, as the losses' papers compare faces."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.asarray((unit[pairs.first] * unit[pairs.second]).sum(1))


def _rate(alike: np.ndarray, unlike: np.ndarray, rate: float) -> float:
    """Share of alike pairs above the least threshold that at most `rate` of the unlike ones exceed."""
    num_exceeding = math.floor(rate * len(unlike) + 1e-9)  # the product may round below a whole number
    return float(np.mean(alike > np.sort(unlike)[len(unlike) - 1 - num_exceeding]))


def _head(path: Path, lines: list[str]) -> tuple[int, int]:
    words = lines[0].split() if lines else []
    if not (1 <= len(words) <= 2 and all(word.isdecimal() and int(word) > 0 for word in words)):
        raise ComparisonError(f"{path}, line 1: it must hold the number of folds and of pairs of each kind in one")
    if len(words) < 2 or int(words[0]) < 2:
        raise ComparisonError(f"{path}, line 1: one fold leaves none for the threshold; LFW's pairs.txt has ten")
    return int(words[0]), int(words[1])


def _image(folder: Path, name: str, number: str) -> Path:
    return folder / name / f"{name}_{int(number):04}.jpg"
