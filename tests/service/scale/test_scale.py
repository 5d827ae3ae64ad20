"""What is deployed on Ray Serve, as far as that can be said without starting it."""

import math

import pytest

from model.errors import BundleError
from service.errors import SettingsError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def deployed(**args: object):
    from service.scale import app

    return app(args)._bound_deployment


def test_each_replica_has_its_share_and_serve_scales_on_what_is_ongoing(digits_bundle):
    deployment = deployed(
        bundle=str(digits_bundle), allow_anonymous=True, min_replicas="2", max_replicas="6", cpus_per_replica="3"
    )
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 6, 16)
    assert deployment.max_ongoing_requests == 64
    assert deployment.ray_actor_options["num_cpus"] == 3
    settings, version = deployment.init_args
    assert (settings.workers, settings.threads, settings.dashboard) == (3, 1, False)
    assert len(version) > 0


def test_replicas_share_a_gpu_by_setting(digits_bundle):
    deployment = deployed(bundle=str(digits_bundle), allow_anonymous=True, gpus_per_replica=0.5)
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    assert (deployment.init_args[0].device, deployment.init_args[0].workers) == ("cuda", 1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "api_keys: Serve's proxies may be open"),
        ({"models": "/bundles"}, "models: not on Ray Serve, where a version is rolled"),
        ({"grpc_port": 0}, "grpc_port: not on Ray Serve"),
        ({"min_replicas": 3, "max_replicas": 2}, r"min_replicas \(3\) is more than max_replicas \(2\)"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica .1.5. must be at most 1 or a whole number"),
        ({"target_ongoing_requests": math.inf}, "target_ongoing_requests: .*less than or equal to 10000"),
        ({"cpus_per_replica": "inf"}, "cpus_per_replica: .*less than or equal to 1024"),
        ({"gpus_per_replica": -1}, "gpus_per_replica: .*greater than or equal to 0"),
        ({"replicas": 3}, "unknown setting 'replicas'"),
        ({"workers": 0}, "workers"),
    ],
)
def test_settings_that_do_not_fit_are_named(digits_bundle, args, said):
    anonymous = {} if not args else {"allow_anonymous": True}
    with pytest.raises(SettingsError, match=said):
        deployed(bundle=str(digits_bundle), **anonymous, **args)


def test_a_bundle_that_is_none_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(BundleError):
        deployed(bundle=str(tmp_path), allow_anonymous=True)
