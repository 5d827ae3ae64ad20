"""Class Gaussians in a plane through three of their means, with every class's covariance as it is seen there.

The axes are orthonormal, so that no distance in the picture is longer than in feature space, those between the three
means are true, and with unit variances a class's one-sigma line is a circle of radius one. For classes of one common
isotropic variance it is the plane of their linear discriminants.

Legend: n features' rows, k classes, d features, v variances a class: 1 or d.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from model.mixture import GaussianMixture


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """origin: a point of the plane; axes: orthonormal."""

    origin: Float[Tensor, " d"]
    axes: Float[Tensor, "2 d"]

    def project(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n 2"]:
        """Where points of feature space lie in the plane."""
        return torch.matmul(points - self.origin, self.axes.T)

    def distance(self, points: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """How far points lie from the plane: what the picture does not show."""
        centred = points - self.origin
        distances: Tensor = torch.linalg.vector_norm(centred - (centred @ self.axes.T) @ self.axes, dim=1)
        return distances


@dataclass(frozen=True, kw_only=True, slots=True)
class Ellipse:
    """Where a class's density, projected, has fallen to exp(-1/2): half axes at one sigma, turned by angle."""

    centre: tuple[float, float]
    half_axes: tuple[float, float]
    angle: float  # in radians, counter-clockwise


def plane_through(points: Float[Tensor, "3 d"]) -> Plane:
    """The plane of three points: the first is its origin, the second lies to the right, the third not below."""
    right, third = points[1] - points[0], points[2] - points[0]
    across = right / right.norm()
    upwards = third - (third @ across) * across
    return Plane(origin=points[0], axes=torch.stack([across, upwards / upwards.norm()]))


def ellipses_of(mixture: GaussianMixture, plane: Plane) -> list[Ellipse]:
    """One for each class, in their order."""
    centres = plane.project(mixture.means.detach())
    log_variances = mixture.log_variances
    variances = torch.ones_like(mixture.means) if log_variances is None else log_variances.detach().exp()
    covariances = torch.einsum("ad,kd,bd->kab", plane.axes, variances.expand_as(mixture.means), plane.axes)
    return [_ellipse(centre, covariance) for centre, covariance in zip(centres, covariances, strict=True)]


def _ellipse(centre: Float[Tensor, " 2"], covariance: Float[Tensor, "2 2"]) -> Ellipse:
    values, vectors = torch.linalg.eigh(covariance)
    x, y = vectors[:, 1].tolist()
    small, large = values.clamp_min(0).sqrt().tolist()
    first, second = centre.tolist()
    return Ellipse(centre=(first, second), half_axes=(large, small), angle=math.atan2(y, x))
