"""What is told of a cluster that goes away, without one."""

import socket

import pytest

from detectors.distributed import cluster
from detectors.distributed.cluster import ClusterError, Head, import_ray
from detectors.evaluation.attacks import AttackError


def test_a_head_node_may_be_silent_for_a_while_and_is_then_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = Head(f"127.0.0.1:{server.getsockname()[1]}")
        head.check()
    head.check()  # the first silence
    head.check()
    monkeypatch.setattr(cluster, "LOST_SECONDS", 0.0)
    with pytest.raises(ClusterError, match=f"the head node of the Ray cluster, {head.address}, is lost"):
        head.check()


def test_a_worker_s_own_error_is_told_without_what_ray_wraps_it_in() -> None:
    exceptions = import_ray().exceptions
    own = AttackError("eps of bim must lie in (0, 1], got 8")
    wrapped = exceptions.RayTaskError("judge_there", "Traceback ...", own).as_instanceof_cause()
    assert isinstance(wrapped, AttackError)  # and yet its text is Ray's
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = Head(f"127.0.0.1:{server.getsockname()[1]}")
        assert head.told(wrapped) is own
        told = head.told(exceptions.WorkerCrashedError())
        assert isinstance(told, ClusterError)
        assert str(told).startswith("the Ray run ended: The worker died unexpectedly")
    assert str(head.told(exceptions.WorkerCrashedError())).endswith("is lost")
