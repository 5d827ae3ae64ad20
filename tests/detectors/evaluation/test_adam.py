import torch
from torch import nn

from detectors.evaluation.adam import Adam


def test_it_moves_as_torch_does_and_leaves_out_closed_rows() -> None:
    """torch.optim.Adam on the rows that stay, one learning rate, ascending."""
    generator = torch.Generator().manual_seed(0)
    images, rate = torch.randn(5, 2, 3, 3, generator=generator), 0.01
    rows = torch.tensor([0, 2, 3])
    pixels = nn.Parameter(images[rows].clone())
    oracle = torch.optim.Adam([pixels], lr=rate, maximize=True)
    adam, moved = Adam(images), images.clone()
    for step in range(20):
        directions = torch.randn(5, 2, 3, 3, generator=generator) * 10.0 ** (step - 10)
        asked = torch.arange(5) if step == 0 else rows
        before = moved[[1, 4]].clone()
        moved[asked] += rate * adam(asked, directions[asked])
        pixels.grad = directions[rows]
        oracle.step()
        assert torch.allclose(moved[rows], pixels.detach(), atol=1e-6)
        assert step == 0 or torch.equal(moved[[1, 4]], before)


def test_the_first_move_is_the_sign() -> None:
    directions = torch.tensor([1e-3, -2.0, 50.0, 0.0]).view(1, 1, 2, 2)
    moved = Adam(directions)(torch.tensor([0]), directions)
    assert torch.allclose(moved, directions.sign(), atol=1e-4)
