"""The plane of three class means: what is true in it, and what is only its shadow."""

import math

import numpy as np
import pytest
import torch

from detectors.projection import ellipses_of, plane_through
from model.mixture import GaussianMixture

NUM_FEATURES = 6


def mixture_of(variance: str) -> GaussianMixture:
    mixture = GaussianMixture(4, NUM_FEATURES, variance=variance, generator=torch.Generator().manual_seed(0))
    if variance != "unit":
        with torch.no_grad():
            mixture.raw_log_variances.normal_(generator=torch.Generator().manual_seed(1))
    return mixture


def test_distances_among_the_three_points_are_true():
    points = mixture_of("unit").means.detach()[:3]
    plane = plane_through(points)
    torch.testing.assert_close(torch.cdist(plane.project(points), plane.project(points)), torch.cdist(points, points))
    torch.testing.assert_close(plane.distance(points), torch.zeros(3), atol=1e-5, rtol=0)


def test_the_second_point_lies_to_the_right_and_the_third_above():
    points = mixture_of("unit").means.detach()[:3]
    origin, right, third = plane_through(points).project(points)
    torch.testing.assert_close(origin, torch.zeros(2))
    torch.testing.assert_close(
        right, torch.tensor([float((points[1] - points[0]).norm()), 0.0]), atol=1e-5, rtol=1e-5
    )
    assert third[1] > 0


def test_what_the_picture_shows_and_what_it_leaves_out_make_up_the_distance():
    mixture = mixture_of("unit")
    plane = plane_through(mixture.means.detach()[:3])
    others = torch.randn(10, NUM_FEATURES, generator=torch.Generator().manual_seed(2))
    whole = (others - plane.origin).norm(dim=1)
    torch.testing.assert_close(torch.hypot(plane.project(others).norm(dim=1), plane.distance(others)), whole)


def test_unit_variances_are_circles_of_radius_one():
    mixture = mixture_of("unit")
    for ellipse in ellipses_of(mixture, plane_through(mixture.means.detach()[:3])):
        assert ellipse.half_axes == pytest.approx((1, 1), abs=1e-5)


def test_one_variance_a_class_gives_circles_of_its_deviation():
    mixture = mixture_of("isotropic")
    deviations = mixture.log_variances.detach().mul(0.5).exp().flatten().tolist()
    for ellipse, deviation in zip(
        ellipses_of(mixture, plane_through(mixture.means.detach()[:3])), deviations, strict=True
    ):
        assert ellipse.half_axes == pytest.approx((deviation, deviation), rel=1e-4)


def test_diagonal_variances_are_the_ellipses_of_projected_samples():
    mixture = mixture_of("diagonal")
    means, variances = mixture.means.detach(), mixture.log_variances.detach().exp()
    plane = plane_through(means[:3])
    noise = torch.randn(200_000, NUM_FEATURES, generator=torch.Generator().manual_seed(3))
    for index, ellipse in enumerate(ellipses_of(mixture, plane)):
        seen = plane.project(means[index] + noise * variances[index].sqrt()).numpy()
        values, vectors = np.linalg.eigh(np.cov(seen.T))
        assert ellipse.half_axes == pytest.approx(np.sqrt(values[::-1]), rel=0.02)
        between = ellipse.angle - math.atan2(vectors[1, 1], vectors[0, 1])
        assert abs(math.sin(between)) < 0.05
        assert ellipse.centre == pytest.approx(plane.project(means[index : index + 1])[0].tolist(), abs=1e-5)
