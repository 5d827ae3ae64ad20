"""Hand-made evidence: three clusters of features around the means of an untrained network's mixture."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detectors.base import Evidence
from model.network import Network
from model.network_config import MixtureConfig, NetworkConfig, Variance

NUM_CLASSES, NUM_FEATURES = 3, 6
Batch = tuple[Evidence, Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_network(variance: Variance = "unit") -> Network:
    config = NetworkConfig(backbone="small28", width=1, num_features=NUM_FEATURES)
    network = Network(config, MixtureConfig(variance=variance), num_classes=NUM_CLASSES, num_channels=1).eval()
    network.mixture.means.data = 3 * normal(NUM_CLASSES, NUM_FEATURES, seed=1)
    return network.requires_grad_(False)


def make_evidence(network: Network, features: Tensor, *taps: Tensor) -> Evidence:
    """As if one forward pass had left these; the images are blank."""
    return Evidence(
        images=torch.zeros(len(features), 1, 8, 8),
        features=features,
        log_joint=network.mixture(features),
        taps=taps,
        network=network,
    )


def clusters(network: Network, counts: Sequence[int], *, seed: int = 2) -> list[Batch]:
    """One or two batches of so many rows a class, shuffled; the tap is a linear map of the features plus noise."""
    labels = torch.repeat_interleave(torch.arange(NUM_CLASSES), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    features = network.mixture.means[labels] + 0.5 * normal(len(labels), NUM_FEATURES, seed=seed + 1)
    tap = features @ normal(NUM_FEATURES, 4, seed=5) + normal(len(labels), 4, seed=seed + 2)
    # Batches of one size, or a single one: the contract's annotation gives all batches of a list the same n.
    parts = zip(*(torch.chunk(of, 2 - len(labels) % 2) for of in (features, tap, labels)), strict=True)
    return [(make_evidence(network, of, at), label) for of, at, label in parts]


def joined(batches: list[Batch]) -> tuple[Evidence, Tensor]:
    """All batches in one."""
    features = torch.cat([evidence.features for evidence, _ in batches])
    tap = torch.cat([evidence.taps[0] for evidence, _ in batches])
    evidence = make_evidence(batches[0][0].network, features, tap)
    return evidence, torch.cat([labels for _, labels in batches])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
