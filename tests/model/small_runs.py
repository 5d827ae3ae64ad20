"""Training runs of half a second on digits, and what their tests ask of them."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.checkpoint import Checkpoint
from model.config import Config, parse_config

TOML = """
name = "tiny"
data = { name = "digits" }
network = { backbone = "small28", width = 4, num_features = 8 }
optimizer = { learning_rate = 0.02 }
training = { epochs = 2, batch_size = 64 }
"""


def tiny(**changes: Any) -> Config:
    """Two epochs of twenty steps, with other entries in the file's tables."""
    tables = tomllib.loads(TOML)
    return parse_config(tables | {name: tables.get(name, {}) | entries for name, entries in changes.items()})


def write_images(folder: Path, *, seed: int = 0, **counts: int) -> Path:
    """A folder of so many images a class, 8 x 8 of noise."""
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def assert_same_weights(first: Checkpoint, second: Checkpoint) -> None:
    assert first.network.keys() == second.network.keys()
    for name, weights in first.network.items():
        assert torch.equal(weights, second.network[name]), name
