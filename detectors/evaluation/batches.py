"""What is attacked at once: a task's images, cut into batches, each of which can be judged anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detectors.evaluation.inputs import Images, Inputs, TestSet
from detectors.evaluation.parts import Part
from detectors.evaluation.settings import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """uint8 images (n, c, h, w) and labels (n,), -1 for what has no class; the index-th of its task.

    was_right (n,): which the classifier got right when they were clean; None where these are the clean ones.
    """

    index: int
    images: Tensor
    labels: Tensor
    was_right: np.ndarray | None


def clean_batches(inputs: Inputs, sample: TestSet) -> Iterator[Batch]:
    """The test images themselves."""
    return _cut(sample.images, sample.labels, None, inputs.settings.batch_size)


def task_batches(inputs: Inputs, task: Task, sample: TestSet, clean: Part) -> Iterator[Batch]:
    """What a task starts from: test images, or foreign ones."""
    images = inputs.images_of(task, sample)
    foreign = task.group == "foreign"
    labels = torch.full((len(images),), -1) if foreign else sample.labels
    was_right = np.zeros(len(images), dtype=bool) if foreign else clean.right
    return _cut(images, labels, was_right, inputs.settings.batch_size)


def _cut(images: Images, labels: Tensor, was_right: np.ndarray | None, size: int) -> Iterator[Batch]:
    for index, start in enumerate(range(0, len(images), size)):
        rows = slice(start, start + size)
        yield Batch(
            index=index,
            images=images[rows].clone(),  # a view would take all images along to another process
            labels=labels[rows].clone(),
            was_right=None if was_right is None else was_right[rows],
        )
