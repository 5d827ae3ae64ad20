"""Keys, limits, TLS and traces of a real `lgm serve`."""

import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import httpx
import pytest
import trustme
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.server import TIMEOUT, Server

REPOSITORY = Path(__file__).parents[2]
SEVEN = (REPOSITORY / "tests" / "samples" / "seven.png").read_bytes()
PNG = {"content-type": "image/png"}
LGM = str(Path(sys.executable).with_name("lgm"))


def started(*arguments: str) -> Iterator[Server]:
    server = Server("--workers", "1", "--threads", "1", "--drain-seconds", "0", *arguments)
    yield server
    if server.process.poll() is None:
        server.stop()


def lgm(*arguments: str) -> str:
    return subprocess.run(
        [LGM, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def keys_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def key(keys_path: Path) -> str:
    return lgm("keys", "new", "--file", str(keys_path), "--role", "predict", "--name", "ci", "--expires", "90d")


@pytest.fixture(scope="module")
def guarded(keys_path: Path, key: str) -> Iterator[Server]:
    limits = ("--max-head-bytes", "4096", "--head-timeout-seconds", "0.5")
    yield from started("--api-keys", str(keys_path), "--log-level", "debug", *limits)


def test_a_key_opens_and_its_id_stands_in_the_log(guarded: Server, key: str):
    headers = {**PNG, "authorization": f"Bearer {key}", "x-request-id": "with-a-key"}
    with httpx.Client(base_url=guarded.await_ready(), timeout=TIMEOUT) as client:
        assert client.post("/v1/predict", content=SEVEN, headers=headers).status_code == 200
        assert client.post("/v1/predict", content=SEVEN, headers=PNG).status_code == 401
        assert client.get("/v1/quarantine", headers=headers).status_code == 403
        assert client.get("/healthz").status_code == 200


def test_a_stream_ends_with_its_key(guarded: Server, keys_path: Path):
    key = lgm("keys", "new", "--file", str(keys_path), "--role", "review", "--name", "leaver")
    stream = f"{guarded.await_ready()}/v1/monitor/stream"
    headers = {"authorization": f"Bearer {key}"}
    while httpx.get(stream.removesuffix("/stream"), headers=headers, timeout=TIMEOUT).status_code != 200:
        pass  # the file is looked at once a second
    with httpx.stream("GET", stream, headers=headers, timeout=TIMEOUT) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: snapshot"
        (name,) = [
            line.split()[0] for line in lgm("keys", "list", "--file", str(keys_path)).splitlines() if "leaver" in line
        ]
        lgm("keys", "revoke", name, "--file", str(keys_path))
        assert sum(line == "event: snapshot" for line in islice(lines, 60)) < 10  # and it ends
    assert httpx.get(stream, headers=headers, timeout=TIMEOUT).status_code == 401


def test_a_head_is_limited_in_size_and_in_time(guarded: Server):
    url = httpx.URL(guarded.await_url())
    assert httpx.get(url, headers={"x": "a" * 5000}, timeout=TIMEOUT).status_code == 431
    with socket.create_connection((url.host, url.port or 80), TIMEOUT) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nhost: ")
        assert slow.recv(1000) == b""


def test_no_key_is_ever_logged(guarded: Server, key: str):
    """Wherever a caller puts one, with the most talkative log there is."""
    multipart = {"image": (f"{key}.png", SEVEN)}
    with httpx.Client(base_url=guarded.await_ready(), timeout=TIMEOUT) as client:
        for name in ("authorization", "x-api-key", "x-request-id", "traceparent", "cookie", "user-agent", "referer"):
            for value in (key, f"Bearer {key}"):
                client.post("/v1/predict", content=SEVEN, headers={**PNG, name: value})
        for headers in ({}, {"x-api-key": key}):
            client.get(f"/v1/models/{key}", params={"key": key}, headers=headers)
            client.get(f"/{key}", headers=headers)
            client.post("/v1/predict", content=key, headers={**headers, "content-type": "application/json"})
            client.post("/v1/predict", json={key: key, "instances": [{"b64": key}]}, headers=headers)
            client.post("/v1/predict", content=SEVEN, headers={**headers, "content-type": f"image/{key}"})
            client.post("/v1/predict", content=SEVEN, headers={**headers, "content-type": key})
            client.post("/v1/predict", files=multipart, headers=headers)
    raw(guarded, f"GET /{key} HTTP/1.1\r\n{key}\r\n\r\n".encode())
    raw(guarded, f"{key} / HTTP/1.1\r\n\r\n".encode())
    status = guarded.stop()
    log = "\n".join(str(line) for line in guarded.lines)
    assert status == 0
    assert key not in log
    assert key.removeprefix("lgm_")[:16] not in log
    assert len([line for line in guarded.lines if line.get("logger") == "service.access"]) > 25
    (line,) = [
        line
        for line in guarded.lines
        if line.get("request_id") == "with-a-key" and line.get("route") == "/v1/predict"
    ]
    assert str(line["key"]).startswith("ci-")
    assert str(line["key"]) not in key


def raw(server: Server, request: bytes) -> None:
    url = httpx.URL(server.await_url())
    with socket.create_connection((url.host, url.port or 80), TIMEOUT) as connection:
        connection.sendall(request)
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_folder(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    write_certificate(authority, folder)
    return folder


def write_certificate(authority: trustme.CA, folder: Path) -> None:
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")


@pytest.fixture(scope="module")
def tls(tls_folder: Path) -> Iterator[Server]:
    files = {"--tls-certificate": "certificate.pem", "--tls-key": "key.pem", "--tls-client-ca": "ca.pem"}
    yield from started(*(part for name, file in files.items() for part in (name, str(tls_folder / file))))


@pytest.fixture
def trusting(tls_folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tls_folder / "ca.pem")


@pytest.fixture
def identified(authority: trustme.CA, trusting: ssl.SSLContext) -> ssl.SSLContext:
    authority.issue_cert("client@example.org").configure_cert(trusting)
    return trusting


def test_https_answers_with_strict_transport(tls: Server, identified: ssl.SSLContext):
    response = httpx.get(f"{tls.await_url()}/healthz", verify=identified, timeout=TIMEOUT)
    assert tls.url.startswith("https://")
    assert response.json() == {"status": "alive"}
    assert response.headers["strict-transport-security"] == "max-age=31536000"


def test_a_client_must_show_a_certificate_of_the_authority(tls: Server, trusting: ssl.SSLContext):
    with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
        httpx.get(f"{tls.await_url()}/healthz", verify=trusting, timeout=TIMEOUT)
    trustme.CA().issue_cert("client@example.org").configure_cert(trusting)
    with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
        httpx.get(f"{tls.await_url()}/healthz", verify=trusting, timeout=TIMEOUT)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(tls: Server, identified: ssl.SSLContext):
    identified.set_ciphers("ALL:@SECLEVEL=0")
    identified.minimum_version = identified.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{tls.await_url()}/healthz", verify=identified, timeout=TIMEOUT)


def test_a_renewed_certificate_is_taken_up(
    tls: Server, authority: trustme.CA, tls_folder: Path, identified: ssl.SSLContext
):
    before = served_certificate(tls, identified)
    write_certificate(authority, tls_folder)
    for _ in range(1000):  # it looks once a second
        if served_certificate(tls, identified) != before:
            break
    assert served_certificate(tls, identified) != before


def served_certificate(server: Server, context: ssl.SSLContext) -> bytes | None:
    url = httpx.URL(server.await_url())
    with (
        socket.create_connection((url.host, url.port or 443), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=url.host) as connection,
    ):
        return connection.getpeercert(binary_form=True)


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.requests: list[ExportTraceServiceRequest] = []


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def test_spans_arrive_at_a_collector_before_the_process_ends(collector: Collector):
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    server = Server("--workers", "1", "--threads", "1", "--drain-seconds", "0", "--trace-endpoint", endpoint)
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with httpx.Client(base_url=server.await_ready(), timeout=TIMEOUT) as client:
        client.post("/v1/predict", content=SEVEN, headers={**PNG, "traceparent": given})
    assert server.stop() == 0
    groups = [group for request in collector.requests for group in request.resource_spans]
    spans = [span for group in groups for scope in group.scope_spans for span in scope.spans]
    ours = {span.name for span in spans if span.trace_id.hex() == given.split("-")[1]}
    assert ours == {"POST /v1/predict", "decode", "queue wait", "inference"}
    names = {attribute.key: attribute.value.string_value for attribute in groups[0].resource.attributes}
    assert names["service.name"] == "lgm-guard"
    (line,) = [line for line in server.lines if line.get("route") == "/v1/predict"]
    assert line["trace_id"] == given.split("-")[1]


def test_a_collector_that_is_down_costs_no_request():
    server = Server(
        "--workers", "1", "--threads", "1", "--drain-seconds", "0", "--trace-endpoint", "http://127.0.0.1:9/v1/traces"
    )
    with httpx.Client(base_url=server.await_ready(), timeout=TIMEOUT) as client:
        answers = [client.post("/v1/predict", content=SEVEN, headers=PNG).status_code for _ in range(5)]
    assert answers == [200] * 5
    assert server.stop() == 0
    assert "Failed to export" in str(server.lines)
