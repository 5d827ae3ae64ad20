"""A real Ray Serve of two replicas under load: one is killed, versions are rolled, replicas come and go."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from detectors.manifest import load_manifest
from tests.bundles import with_other_card
from tests.ray_cluster import RayCluster, free_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TIMEOUT = 600
CALLERS = 6
PNG = {"content-type": "image/png"}


class Site:
    """Ray Serve in this test's hands."""

    def __init__(self, cluster: RayCluster):
        import ray
        from ray import serve

        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        self._cluster = cluster
        port = free_port()
        with suppress(ray.exceptions.GetTimeoutError):  # for its proxy, after a minute; deploy waits on
            serve.start(http_options={"host": "127.0.0.1", "port": port})
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self, bundle: Path, **args: Any) -> None:
        from ray import serve

        from service.scale import app

        # What is slow, on a machine that has much else to do, is not failed.
        patient = {"request_timeout_seconds": TIMEOUT, "inference_timeout_seconds": TIMEOUT}
        target = app({"bundle": str(bundle), "allow_anonymous": True, "quarantine": "off", **patient, **args})
        serve.run(target, name="lgm-guard", route_prefix="/")
        await_true(self._is_ready, "an answer")

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=TIMEOUT).status_code == 200
        return False

    def replicas(self) -> list[psutil.Process]:
        family = psutil.Process(self._cluster.process.pid).children(recursive=True)
        return [process for process in family if _is_replica(process)]

    def await_replicas(self, count: int) -> None:
        from ray import serve

        def running() -> int:
            application = serve.status().applications["lgm-guard"]
            return sum(found.replica_states.get("RUNNING", 0) for found in application.deployments.values())

        await_true(lambda: running() == count, f"{count} replicas")


def _is_replica(process: psutil.Process) -> bool:
    try:
        return "ServeReplica:lgm-guard:Service" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def await_true(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Load:
    """Callers that ask one after the other until they are told to stop; each may ask once more over a failure."""

    def __init__(self, url: str, body: bytes, num_callers: int = CALLERS):
        self._url, self._body = url, body
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(num_callers)
        self.versions: list[str] = []
        self.failures: list[str] = []  # that were asked again
        self._callers = [self._pool.submit(self._call) for _ in range(num_callers)]

    def _call(self) -> None:
        with httpx.Client(base_url=self._url, timeout=TIMEOUT) as client:
            while not self._stopped.is_set():
                try:
                    answer = self._ask(client)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    answer = self._ask(client)
                self.versions.append(answer.json()["model"]["version"])

    def _ask(self, client: httpx.Client) -> httpx.Response:
        answer = client.post("/v1/predict", content=self._body, headers=PNG)
        if answer.status_code != 200:
            raise httpx.HTTPError(f"{answer.status_code}: {answer.text}")
        return answer

    def await_more(self, count: int) -> None:
        wanted = len(self.versions) + count
        await_true(lambda: len(self.versions) >= wanted or any(call.done() for call in self._callers), "answers")

    def stop(self) -> None:
        """Raises what a caller failed over."""
        self._stopped.set()
        for call in self._callers:
            call.result()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="lgm-ray-", dir="/tmp"))
    cluster = RayCluster(folder, num_cpus=4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        try:
            yield Site(cluster)
        finally:
            import ray

            ray.shutdown()
            cluster.kill()
            shutil.rmtree(folder, ignore_errors=True)


def test_routes_answer_and_a_killed_replica_costs_no_more_than_a_retry(site, digits_bundle, digit_files):
    site.deploy(digits_bundle, min_replicas=2, max_replicas=2)
    version = load_manifest(digits_bundle).version
    assert httpx.get(f"{site.url}/readyz", timeout=TIMEOUT).json()["model"]["version"] == version
    assert httpx.get(f"{site.url}/v2/models/digits/ready", timeout=TIMEOUT).json()["ready"] is True
    bad = httpx.post(f"{site.url}/v1/predict", content=b"no image", headers=PNG, timeout=TIMEOUT)
    assert bad.status_code == 422
    load = Load(site.url, digit_files[0])
    load.await_more(50)
    before = {process.pid for process in site.replicas()}
    assert len(before) == 2
    psutil.Process(min(before)).kill()
    load.await_more(50)
    await_true(lambda: len({process.pid for process in site.replicas()} - before) == 1, "another replica")
    site.await_replicas(2)
    load.await_more(50)
    load.stop()
    assert set(load.versions) == {version}


def test_a_version_is_rolled_without_a_failed_request(site, digits_bundle, digit_files, tmp_path):
    other = with_other_card(digits_bundle, tmp_path / "other", "another card")
    versions = [load_manifest(bundle).version for bundle in (digits_bundle, other)]
    site.deploy(digits_bundle, min_replicas=2, max_replicas=2)
    load = Load(site.url, digit_files[0])
    load.await_more(20)
    site.deploy(other, min_replicas=2, max_replicas=2)
    site.await_replicas(2)
    load.await_more(20)
    load.stop()
    assert load.failures == []
    assert set(load.versions) == set(versions)
    assert load.versions[-10:] == versions[1:] * 10


def test_replicas_come_with_requests_and_go_with_them(site, digits_bundle, digit_files):
    site.deploy(
        digits_bundle,
        min_replicas=1,
        max_replicas=2,
        target_ongoing_requests=1,
        upscale_delay_seconds=1,
        downscale_delay_seconds=2,
    )
    site.await_replicas(1)
    load = Load(site.url, digit_files[0])
    site.await_replicas(2)
    load.stop()
    assert load.failures == []
    site.await_replicas(1)
    assert httpx.get(f"{site.url}/readyz", timeout=TIMEOUT).status_code == 200
