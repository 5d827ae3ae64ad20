"""Adam's rule for single images, which an attack can ascend by."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999
LEAST_ROOT = 1e-8


class Adam:
    """Running moments of n images' directions (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), zero at first.

    A pixel whose direction keeps turning slows down, one whose direction is faint but steady does not.
    """

    def __init__(self, images: Float[Tensor, "n c h w"]) -> None:
        self._mean = torch.zeros_like(images)
        self._square = torch.zeros_like(images)
        self._num_calls = 0

    def __call__(self, rows: Int[Tensor, " m"], directions: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
        """What those images' pixels move by, most of them in [-1, 1]; a row that is left out once stays out."""
        self._num_calls += 1
        self._mean[rows] = torch.lerp(directions, self._mean[rows], MEAN_DECAY)
        self._square[rows] = torch.lerp(directions.square(), self._square[rows], SQUARE_DECAY)
        mean = self._mean[rows] / (1 - MEAN_DECAY**self._num_calls)
        square = self._square[rows] / (1 - SQUARE_DECAY**self._num_calls)
        return mean / (square.sqrt() + LEAST_ROOT)
