"""Adversarial training: a batch is replaced by the images of its budget that the network gets most wrong.

Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
arXiv 1706.06083: projected gradient ascent on the classification loss (their equation 2.1 and section 2). Here
the loss is that of the mixture without margin, -log p(y | x). Letters: n images, c channels, h w pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from model.config import AdversarialConfig
from model.network import Network
from model.part import Part


def attacked(
    network: Network,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    config: AdversarialConfig,
    *,
    epoch: float,
    generator: torch.Generator,
    part: Part | None = None,
) -> Float[Tensor, "n c h w"]:
    """The batch to train on, in [0, 1] and within eps of images; its first clean_share are left as they are.

    epoch: epochs done so far, with their fraction, which place the batch on the ramp. The generator (on the CPU)
    is the only source of chance, and is drawn from only where a random start is needed. The network's modes are
    afterwards what they were; its gradients and batch statistics are not touched. part: which rows of a batch the
    images are; all of it where not given.
    """
    part = part or Part.whole(len(images))
    reached = ramp(config, epoch)
    first = round(config.clean_share * part.total)  # of the batch's attacked rows
    if config.eps * reached == 0 or first == part.total:
        return images
    num_clean = min(max(0, first - part.first), len(images))
    attacked_part = Part(max(0, part.first - first), max(0, part.last - first), part.total - first)
    with _evaluating(network):
        found = _ascend(network, images[num_clean:], labels[num_clean:], config, reached, attacked_part, generator)
    return torch.cat([images[:num_clean], found])


def ramp(config: AdversarialConfig, epoch: float) -> float:
    """Share of eps in force after so many epochs: a straight line from zero, then one."""
    return 1.0 if epoch >= config.ramp_epochs else epoch / config.ramp_epochs


def _ascend(
    network: Network,
    images: Float[Tensor, "m c h w"],
    labels: Int[Tensor, " m"],
    config: AdversarialConfig,
    reached: float,
    part: Part,
    generator: torch.Generator,
) -> Float[Tensor, "m c h w"]:
    eps = config.eps * reached
    step_size = 2.5 * eps / config.steps if config.step_size is None else config.step_size * reached
    current = images
    if config.random_start:
        change = torch.empty(part.total, *images.shape[1:]).uniform_(-eps, eps, generator=generator)[part.rows]
        current = _confined(images + change.to(images.device), images, eps)
    for _ in range(config.steps):
        gradient = _gradient(network, current, labels)
        current = _confined(current + step_size * gradient.sign(), images, eps)
    return current


def _gradient(
    network: Network, images: Float[Tensor, "m c h w"], labels: Int[Tensor, " m"]
) -> Float[Tensor, "m c h w"]:
    """Of each image's loss, in its pixels alone: autograd.grad leaves nothing behind in the parameters."""
    with torch.enable_grad():
        asked = images.detach().requires_grad_()
        log_joint = network.mixture(network.embed(asked))
        loss = nn.functional.cross_entropy(log_joint, labels, reduction="sum")
        return torch.autograd.grad(loss, asked)[0]


def _confined(
    candidates: Float[Tensor, "m c h w"], images: Float[Tensor, "m c h w"], eps: float
) -> Float[Tensor, "m c h w"]:
    """The nearest points of the eps-ball around images, then of [0, 1], which never leads out of the ball."""
    return (images + (candidates - images).clamp(-eps, eps)).clamp(0, 1)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, every module's own mode restored on the way out.

    Pang et al. 2021, "Bag of Tricks for Adversarial Training", section 3: attacks made in evaluation mode give the
    higher clean accuracy at the same robustness. They are then made on the network that is deployed, an image's
    does not depend on its batch, and the running statistics see no half-made images.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
