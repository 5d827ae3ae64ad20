"""gRPC behind the door and the limits of HTTP: in this process, and as tritonclient meets a real server."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
import trustme
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from tritonclient.utils import InferenceServerException

from model.image_set import to_unit
from service.errors import SettingsError
from service.inference_protocol.grpc_server import listen
from service.key_file import append_key
from service.keys import Role, make_key
from service.runtime import Runtime
from service.settings import load_settings
from service.spans import RequestSpans
from tests.server import TIMEOUT, Server
from tests.service.grpc_scenarios import PATH, held, outcome, raw, run_scenario
from tests.service.test_keys import key_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")


@pytest.fixture(scope="module")
def images(digits_images):
    return to_unit(digits_images[:12]).numpy()


@pytest.fixture
def run(settings):
    return partial(run_scenario, settings)


@pytest.fixture(scope="module")
def key() -> str:
    return make_key()


@pytest.fixture(scope="module")
def keys_path(key: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    append_key(path, key_of(key, id="ci-1", role=Role.PREDICT))
    return path


async def silence() -> AsyncIterator[bytes]:
    """A request whose message never comes."""
    await asyncio.Event().wait()
    yield b""


async def silent_call(channel: grpc.aio.Channel) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.stream_unary(PATH + "ModelInfer")(silence())
    return caught.value


def trailing(error: grpc.aio.AioRpcError) -> dict[str, str]:
    return dict(error.trailing_metadata())


def test_without_a_key_a_message_is_not_even_waited_for(run, keys_path):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        refused = await silent_call(channel)
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        assert refused.details() == "a valid API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
        assert runtime.metrics.registry.get_sample_value("lgm_rejected_total", {"reason": "unauthenticated"}) == 1

    run(scenario, api_keys=keys_path)


def test_a_message_that_does_not_come_is_given_up(run):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        slow = await silent_call(channel)
        assert (slow.code(), slow.details()) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "message: did not arrive within 0.2 s, the limit",
        )
        assert runtime.flight.num_requests == 0

    run(scenario, request_timeout_seconds=0.2)


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ({"max_in_flight": 1}, grpc.StatusCode.UNAVAILABLE),
        ({"max_in_flight_per_key": 1}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_requests_in_flight_are_bounded_and_probes_pass(run, images, limit, code):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        with held(runtime):
            running = asyncio.create_task(outcome(channel, "ModelInfer", raw(images[:1])))
            while runtime.flight.num_requests == 0:
                await asyncio.sleep(0)
            refused = await silent_call(channel)
            assert (refused.code(), trailing(refused)["grpc-retry-pushback-ms"]) == (code, "1000")
            assert await channel.unary_unary(PATH + "ServerReady")(b"")
        assert isinstance(await running, bytes)
        assert (runtime.flight.num_requests, runtime.flight.num_bytes) == (0, 0)

    run(scenario, **limit)


def test_the_bytes_of_messages_in_flight_are_bounded(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        with held(runtime):
            running = asyncio.create_task(outcome(channel, "ModelInfer", raw(images)))
            while runtime.flight.num_bytes == 0:
                await asyncio.sleep(0)
            refused = await outcome(channel, "ModelInfer", raw(images))
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.details() == "the bodies in flight hold more than 5000 bytes, the limit"
        assert isinstance(await running, bytes)
        assert runtime.flight.num_bytes == 0

    run(scenario, max_held_bytes=5000, max_body_bytes=5000)


def test_a_call_pays_for_its_images_from_the_allowance_that_http_has_too(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        infer = channel.unary_unary(PATH + "ModelInfer")
        call = infer(raw(images[:4]).SerializeToString())
        await call
        told = dict(await call.trailing_metadata())
        assert told["ratelimit-policy"].startswith('"images";q=5;w=')
        assert told["ratelimit"].startswith('"images";r=1;')
        assert (await runtime.limiter.take("127.0.0.1")).granted  # as HTTP's middleware would
        refused = await silent_call(channel)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details().startswith("this caller sends faster than it may; come back in ")
        assert int(trailing(refused)["grpc-retry-pushback-ms"]) > 100_000
        assert trailing(refused)["ratelimit"].startswith('"images";r=0;')

    run(scenario, rate_limit=0.001, rate_limit_burst=5)


def test_a_call_that_fails_pays_too(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        with held(runtime):
            message = raw(images[:4])
            message.parameters["timeout"].int64_param = 20_000
            refused = await outcome(channel, "ModelInfer", message)
        assert refused.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert (await runtime.limiter.take("127.0.0.1")).remaining == 5

    run(scenario, rate_limit=0.001, rate_limit_burst=10)


def test_metadata_is_limited_as_heads_are(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        metadata = [("x-padding", "a" * 10_000)]
        refused = await outcome(channel, "ModelInfer", raw(images), metadata=metadata)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario, max_head_bytes=4096)


def test_a_callers_trace_is_followed(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(PATH + "ModelInfer")(raw(images).SerializeToString(), metadata=[TRACEPARENT])
        await call
        assert TRACEPARENT in tuple(await call.trailing_metadata())

    run(scenario)


def test_a_call_is_a_span_with_its_parts_below(run, images, monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("service.runtime.spans_of", lambda settings: RequestSpans(provider.get_tracer("test")))

    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        await outcome(channel, "ModelInfer", raw(images), metadata=[TRACEPARENT, ("x-request-id", "abc")])
        with held(runtime):
            await outcome(channel, "ModelInfer", raw(images[:1]))

    run(scenario, request_timeout_seconds=3)
    spans = [span for span in exporter.get_finished_spans() if span.context.trace_id == int(TRACE, 16)]
    name = "inference.GRPCInferenceService/ModelInfer"
    assert {span.name for span in spans} == {name, "decode", "queue wait", "inference"}
    (request,) = [span for span in spans if span.name == name]
    assert request.parent.span_id == int(PARENT, 16)
    assert dict(request.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "lgm.request_id": "abc",
        "lgm.num_images": 12,
    }
    assert all(span.parent.span_id == request.context.span_id for span in spans if span is not request)
    (late,) = [span for span in exporter.get_finished_spans() if span.name == name and span is not request]
    assert late.status.status_code is StatusCode.ERROR


def test_it_does_not_listen_to_other_machines_without_keys():
    runtime = Runtime(settings=load_settings(host="0.0.0.0", grpc_port=0))
    with pytest.raises(SettingsError, match=r"host: 0\.0\.0\.0 is open to other machines and no API keys are set"):
        asyncio.run(listen(runtime))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_folder(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    client = authority.issue_cert("client@example.org")
    client.private_key_pem.write_to_path(folder / "client-key.pem")
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    write_certificate(authority, folder)
    return folder


def write_certificate(authority: trustme.CA, folder: Path) -> None:
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")


@pytest.fixture(scope="module")
def guarded(digits_bundle, keys_path: Path, tls_folder: Path) -> Iterator[Server]:
    """Keys, TLS, and clients that must show a certificate."""
    files = {"--tls-certificate": "certificate.pem", "--tls-key": "key.pem", "--tls-client-ca": "ca.pem"}
    tls = [part for name, file in files.items() for part in (name, str(tls_folder / file))]
    options = ["--bundle", str(digits_bundle), "--workers", "1", "--drain-seconds", "0", "--grpc-port", "0"]
    server = Server(*options, *tls, "--api-keys", str(keys_path))
    try:
        server.await_ready()
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture
def triton_client(guarded: Server, tls_folder: Path) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(
        guarded.grpc_address,
        ssl=True,
        root_certificates=str(tls_folder / "ca.pem"),
        private_key=str(tls_folder / "client-key.pem"),
        certificate_chain=str(tls_folder / "client.pem"),
    ) as client:
        yield client


def triton_inputs(images: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("images", images.shape, "FP32")
    tensor.set_data_from_numpy(images)
    return [tensor]


@pytest.mark.parametrize("scheme", ["authorization", "x-api-key"])
def test_tritonclient_enters_with_a_key(triton_client, guarded, key, images, scheme):
    headers = {scheme: f"Bearer {key}" if scheme == "authorization" else key, "x-request-id": f"by-{scheme}"}
    answer = triton_client.infer("digits", triton_inputs(images), headers=headers, client_timeout=TIMEOUT)
    assert answer.as_numpy("p_value").shape == (12,)
    assert triton_client.get_model_metadata("digits", headers=headers).name == "digits"
    lines = guarded.await_lines(2, request_id=f"by-{scheme}")
    assert {line.get("key") for line in lines} == {"ci-1"}
    assert key not in str(guarded.lines)


@pytest.mark.parametrize("headers", [None, {"x-api-key": "lgm_" + "a" * 43}, {"authorization": "Basic bGdt"}])
def test_tritonclient_without_a_key_sees_the_probes_alone(triton_client, images, headers):
    assert triton_client.is_server_live(headers=headers)
    assert triton_client.is_server_ready(headers=headers)
    for ask in (
        partial(triton_client.infer, "digits", triton_inputs(images)),
        partial(triton_client.is_model_ready, "digits"),
        triton_client.get_server_metadata,
        partial(triton_client.get_model_metadata, "no such model"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            ask(headers=headers)
        assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


def test_a_client_without_a_certificate_or_without_tls_gets_nowhere(guarded, tls_folder):
    credentials = grpc.ssl_channel_credentials((tls_folder / "ca.pem").read_bytes())
    for channel in (
        grpc.secure_channel(guarded.grpc_address, credentials),
        grpc.insecure_channel(guarded.grpc_address),
    ):
        with channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(PATH + "ServerLive")(b"", timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_renewed_certificate_is_taken_up_for_grpc_too(guarded, authority, tls_folder):
    identified = ssl.create_default_context(cafile=tls_folder / "ca.pem")
    identified.load_cert_chain(tls_folder / "client.pem", tls_folder / "client-key.pem")
    identified.set_alpn_protocols(["h2"])
    before = served_certificate(guarded, identified)
    write_certificate(authority, tls_folder)
    for _ in range(1000):  # it looks once a second
        if served_certificate(guarded, identified) != before:
            break
    assert served_certificate(guarded, identified) != before
    assert httpx.get(f"{guarded.url}/readyz", verify=identified, timeout=TIMEOUT).status_code == 200


def test_renewed_authorities_of_clients_are_taken_up_for_grpc_too(guarded, authority, tls_folder):
    """Who showed a certificate of the former ones is let in no longer."""
    renewed = trustme.CA()
    former, present = (identified_by(issuer, server=authority) for issuer in (authority, renewed))
    assert (is_let_in(guarded, former), is_let_in(guarded, present)) == (True, False)
    renewed.cert_pem.write_to_path(tls_folder / "ca.pem")
    for _ in range(1000):  # it looks once a second
        if is_let_in(guarded, present):
            break
    assert (is_let_in(guarded, former), is_let_in(guarded, present)) == (False, True)


def identified_by(issuer: trustme.CA, *, server: trustme.CA) -> grpc.ChannelCredentials:
    issued = issuer.issue_cert("client@example.org")
    return grpc.ssl_channel_credentials(
        server.cert_pem.bytes(), issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes()
    )


def is_let_in(server: Server, credentials: grpc.ChannelCredentials) -> bool:
    with grpc.secure_channel(server.grpc_address, credentials) as channel:
        try:
            channel.unary_unary(PATH + "ServerLive")(b"", timeout=TIMEOUT)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return True


def served_certificate(server: Server, context: ssl.SSLContext) -> bytes | None:
    host, _, port = server.grpc_address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        return connection.getpeercert(binary_form=True)
