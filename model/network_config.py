"""What makes a network: its backbone, its width, and the form of its mixture. A bundle says so too.

Read by a service's main process as well, so nothing here imports torch.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from model.fields import CHECKED, Count, Positive

Variance = Literal["unit", "isotropic", "diagonal"]
Prior = Literal["uniform", "counts", "learned"]


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class NetworkConfig:
    """Backbone by name (see model/backbones.py), its width, and the number of features d."""

    backbone: str
    width: Annotated[int, Field(ge=1, le=8192, strict=True)] = 32
    num_features: Annotated[int, Field(ge=1, le=65_536, strict=True)] = 64


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class MixtureConfig:
    """The class Gaussians; see GaussianMixture. num_classes, where given, must be that of the data.

    sharded: in training each of several processes holds the Gaussians of its own classes only.
    """

    variance: Variance = "unit"
    prior: Prior = "uniform"
    variance_floor: Annotated[float, Field(gt=0, lt=1, strict=True)] = 1e-3
    initial_scale: Positive | None = None
    means_from_data: bool = False
    num_classes: Count | None = None
    # Not written where it is false: a bundle's version is the digest of all that is.
    sharded: bool = Field(default=False, exclude_if=lambda sharded: not sharded)
