"""The protocol's gRPC server: its messages, its codes, its limits, and its place in the process."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as triton_messages

from model.image_set import to_unit
from service import errors
from service.engine import Engine
from service.inference_protocol import messages
from service.inference_protocol.grpc_calls import CODES
from service.inference_protocol.outputs import OUTPUTS
from service.problems import STATUSES
from service.runtime import Runtime
from tests.server import TIMEOUT, Server
from tests.service.grpc_scenarios import PATH, held, outcome, raw, run_scenario

ModelInferRequest = messages.REQUESTS["ModelInfer"]
FOLDER = Path(messages.__file__).parent


@pytest.fixture(scope="module")
def server(digits_bundle) -> Iterator[Server]:
    server = Server("--bundle", str(digits_bundle), "--workers", "1", "--drain-seconds", "0", "--grpc-port", "0")
    try:
        server.await_ready()
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def channel(server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_address) as channel:
        yield channel


@pytest.fixture(scope="module")
def images(digits_images):
    return to_unit(digits_images[:12]).numpy()


def call(channel: grpc.Channel, name: str, request: Any, **options: Any) -> Any:
    response = getattr(messages, f"{name}Response")
    method = channel.unary_unary(PATH + name, response_deserializer=response.FromString)
    return method(request if isinstance(request, bytes) else request.SerializeToString(), timeout=TIMEOUT, **options)


def refused(channel: grpc.Channel, request: Any, name: str = "ModelInfer") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, name, request)
    return caught.value.code(), caught.value.details()


def typed(images: np.ndarray, datatype: str, field: str) -> Any:
    contents = {field: images.ravel().tolist()}
    tensor = {"name": "images", "datatype": datatype, "shape": images.shape, "contents": contents}
    return ModelInferRequest(model_name="digits", inputs=[tensor])


def test_the_messages_are_the_published_ones():
    """Names, numbers and types of every field are those of Triton's client, so that the bytes mean the same."""
    theirs = triton_messages.DESCRIPTOR

    def fields(message: Any) -> dict[str, tuple[int, int, bool]]:
        found = {field.name: (field.number, field.type, field.is_repeated) for field in message.fields}
        for nested in message.nested_types:
            found |= {f"{nested.name}.{name}": kind for name, kind in fields(nested).items()}
        return found

    ours = messages.SERVICE.file.message_types_by_name
    assert len(ours) == 14
    for name, message in ours.items():
        assert fields(message) == fields(theirs.message_types_by_name[name])
    their_methods = theirs.services_by_name["GRPCInferenceService"].methods_by_name
    for method in messages.SERVICE.methods:
        same = their_methods[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (
            same.input_type.full_name,
            same.output_type.full_name,
        )


def test_the_compiled_messages_are_those_of_the_proto(tmp_path):
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={FOLDER}"]
    compiled = tmp_path / "messages.binpb"
    subprocess.run([*command, f"--descriptor_set_out={compiled}", "open_inference.proto"], check=True)
    assert compiled.read_bytes() == messages.COMPILED.read_bytes()


def test_raw_requests_get_raw_answers_and_typed_ones_typed(channel, images, digits_screener):
    pixels = np.round(images * 255).astype(np.uint8)
    expected = digits_screener.screen(torch.from_numpy(images))
    answers = {
        "raw": call(channel, "ModelInfer", raw(images)),
        "raw bytes": call(channel, "ModelInfer", raw(pixels, datatype="UINT8")),
        "typed": call(channel, "ModelInfer", typed(images, "FP32", "fp32_contents")),
        "typed bytes": call(channel, "ModelInfer", typed(pixels, "UINT8", "uint_contents")),
    }
    for name, answer in answers.items():
        assert [output.name for output in answer.outputs] == list(OUTPUTS)
        outputs = dict(zip(OUTPUTS, answer.outputs, strict=True))
        contents = [list(output.contents.fp32_contents) for output in answer.outputs]
        if name.startswith("raw"):
            assert contents == [[]] * len(OUTPUTS)
            found = np.frombuffer(answer.raw_output_contents[2], np.float32)
        else:
            assert not answer.raw_output_contents
            assert list(outputs["class_index"].contents.int64_contents) == expected.class_index.tolist()
            assert list(outputs["flagged"].contents.bool_contents) == expected.flagged.tolist()
            found = np.array(outputs["log_likelihood"].contents.fp32_contents)
        np.testing.assert_allclose(found, expected.log_likelihood.numpy(), rtol=1e-4)
        assert list(outputs["probabilities"].shape) == [12, 10]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"inputs": [], "raw_input_contents": []}, "inputs: no input given"),
        ({"raw_input_contents": []}, "inputs[0].data: 0 elements"),
        ({"raw_input_contents": [b""]}, "inputs[0].data: 0 bytes"),
        ({"raw_input_contents": [bytes(255)]}, "inputs[0].data: 255 bytes; FP32 of shape [1, 1, 8, 8] takes 256"),
        ({"raw_input_contents": [bytes(256)] * 2}, "raw_input_contents: 2 buffers for 1 inputs"),
        ({"outputs": [{"name": "label"}]}, "outputs[0].name: unknown output 'label'"),
        ({"outputs": [{"name": "p_value"}] * 2}, "outputs[1].name: 'p_value' is asked for twice"),
        (
            {"outputs": [{"name": "p_value", "parameters": {"classification": {"int64_param": 1}}}]},
            "outputs[0].parameters.classification: this extension is not offered",
        ),
        ({"parameters": {"timeout": {"string_param": "1"}}}, "parameters.timeout: must be a number of microseconds"),
        ({"parameters": {"sequence_id": {"int64_param": 7}}}, "parameters.sequence_id: sequences are not offered"),
        ({"parameters": {"sequence_id": {"string_param": "a"}}}, "parameters.sequence_id: sequences are not offered"),
        (
            {"parameters": {"sequence_end": {"bool_param": True}}},
            "parameters.sequence_end: sequences are not offered",
        ),
        ({"parameters": {"timeout": {}}}, "parameters.timeout: must be a number of microseconds"),
    ],
)
def test_a_wrong_request(channel, change, detail):
    request = raw(np.zeros((1, 1, 8, 8), np.float32))
    for name, value in change.items():
        request.ClearField(name)
        request.MergeFrom(ModelInferRequest(**{name: value}))
    code, found = refused(channel, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.startswith(detail)


@pytest.mark.parametrize(
    ("tensor", "detail"),
    [
        ({"name": "image"}, "inputs[0].name: unknown input 'image'"),
        ({"datatype": "FP64"}, "inputs[0].datatype: 'FP64' is not taken"),
        ({"shape": [2**63 - 1, 1, 8, 8]}, f"inputs[0].shape: {2**63 - 1} images"),
        ({"shape": [-1, 1, 8, 8]}, "inputs[0].shape: -1 images"),
        ({"shape": [2**62] * 1000}, "inputs[0].shape: is ["),
        ({"contents": {"fp32_contents": [0.5]}}, "inputs[0].contents: must be absent beside raw_input_contents"),
        (
            {"parameters": {"shared_memory_region": {"string_param": "a"}}},
            "inputs[0].parameters.shared_memory_region",
        ),
    ],
)
def test_a_wrong_tensor(channel, tensor, detail):
    code, found = refused(channel, raw(np.zeros((1, 1, 8, 8), np.float32), **tensor))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert found.startswith(detail)


def test_a_deadline_that_is_none_is_refused_by_name(channel):
    request = raw(np.zeros((1, 1, 8, 8), np.float32))
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", request, metadata=(("x-deadline-ms", "abc"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("x-deadline-ms: must be a whole number of milliseconds")


def test_unknown_models_methods_and_messages(channel):
    request = raw(np.zeros((1, 1, 8, 8), np.float32))
    request.model_version = "1"
    assert refused(channel, request)[0] is grpc.StatusCode.NOT_FOUND
    for name in ("ModelReady", "ModelMetadata"):
        code, detail = refused(channel, messages.REQUESTS[name](name="other"), name)
        assert code is grpc.StatusCode.NOT_FOUND
        assert detail.startswith("no model 'other'")
    assert refused(channel, b"garbage") == (grpc.StatusCode.INVALID_ARGUMENT, "message: not a ModelInferRequest")
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PATH + "ModelStreamInfer")(b"", timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_messages_over_the_limit_on_bodies(channel, server, compression):
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", bytes(17 * 1024 * 1024), compression=compression)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_calls_are_counted_and_logged_under_their_id(channel, server):
    for given_id, kept in (("mine-7", True), ("no sane id", False)):
        method = channel.unary_unary(PATH + "ServerLive")
        _, done = method.with_call(b"", metadata=[("x-request-id", given_id)], timeout=TIMEOUT)
        told = dict(done.trailing_metadata())["x-request-id"]
        assert (told == given_id) == kept
    refused(channel, b"garbage")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'lgm_requests_total{route="grpc/ServerLive",status="OK"}' in text
    assert 'lgm_requests_total{route="grpc/ModelInfer",status="INVALID_ARGUMENT"}' in text
    assert 'lgm_request_duration_seconds_count{route="grpc/ModelInfer"}' in text
    assert server.await_lines(1, route="grpc/ServerLive", request_id="mine-7")


FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
parameters = st.dictionaries(
    st.sampled_from(["timeout", "binary_data_output", "x"]),
    st.sampled_from([{}, {"bool_param": True}, {"int64_param": 5_000_000}, {"string_param": "a"}]),
    max_size=2,
)
numbers = st.lists(st.floats(width=32), max_size=3) | st.just([0.5] * 64)
tensors = st.fixed_dictionaries(
    {
        "name": st.just("images") | st.text(st.characters(codec="utf-8"), max_size=3),
        "datatype": st.sampled_from(["FP32", "UINT8", "INT64", ""]),
        "shape": st.just([1, 1, 8, 8]) | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
        "parameters": parameters,
    },
    optional={
        "contents": st.fixed_dictionaries({"fp32_contents": numbers}, optional={"uint_contents": st.just([7] * 64)})
    },
)
requests = st.fixed_dictionaries(
    {"model_name": st.just("digits"), "inputs": st.lists(tensors, max_size=2)},
    optional={
        "parameters": parameters,
        "raw_input_contents": st.lists(st.binary(max_size=64) | st.just(bytes(256)), max_size=2),
        "outputs": st.lists(st.fixed_dictionaries({"name": st.sampled_from([*OUTPUTS, "x"])}), max_size=3),
    },
).map(lambda members: ModelInferRequest(**members).SerializeToString())


@given(request=requests | st.binary(max_size=100))
@FUZZ
def test_no_message_breaks_it(channel, request):
    method = channel.unary_unary(PATH + "ModelInfer")
    done = method.future(request, timeout=TIMEOUT)
    assert done.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_every_error_has_a_code():
    assert set(STATUSES.values()) - set(CODES) == {412, 415, 428}  # of content types and ETags, which gRPC has not
    for error, code in [
        (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.UnknownModelError, grpc.StatusCode.NOT_FOUND),
        (errors.OverloadedError, grpc.StatusCode.UNAVAILABLE),
        (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    ]:
        assert CODES[STATUSES[error]] is code


@pytest.fixture
def run(settings):
    return partial(run_scenario, settings)


def test_a_full_queue_refuses_at_once_and_a_deadline_gives_up(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        engine = runtime.engine_for()
        with held(runtime):
            running = [asyncio.create_task(outcome(channel, "ModelInfer", raw(images[:8]))) for _ in range(2)]
            while engine.depth != 8:
                await asyncio.sleep(0)
            full = await outcome(channel, "ModelInfer", raw(images[:1]))
        assert [type(await call) for call in running] == [bytes, bytes]
        assert (full.code(), full.details()) == (grpc.StatusCode.UNAVAILABLE, "8 images wait; the limit is 8")
        (pushback,) = [value for key, value in full.trailing_metadata() if key == "grpc-retry-pushback-ms"]
        assert int(pushback) >= 1000
        request = raw(images[:1])
        request.parameters["timeout"].int64_param = 20_000
        with held(runtime):
            late = await outcome(channel, "ModelInfer", raw(images[:1]), timeout=0.05)
            later = await outcome(channel, "ModelInfer", request)
            last = await outcome(channel, "ModelInfer", raw(images[:1]), metadata=(("x-deadline-ms", "20"),))
        assert late.code() is later.code() is last.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert later.details() == last.details() == "no answer before the deadline"

    run(scenario, queue_capacity=8, max_instances=8)


def test_before_the_model_is_loaded_it_is_unavailable_and_not_unknown(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        early = await outcome(channel, "ModelInfer", raw(images))
        assert (early.code(), early.details()) == (grpc.StatusCode.UNAVAILABLE, "the model is not loaded yet")
        assert "grpc-retry-pushback-ms" in dict(early.trailing_metadata())
        ready = await outcome(channel, "ModelReady", messages.REQUESTS["ModelReady"](name="digits"))
        assert not messages.ModelReadyResponse.FromString(ready).ready

    run(scenario, loaded=False)


def test_what_nobody_expected_is_an_internal_error_that_tells_nothing(run, images, caplog, monkeypatch):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        monkeypatch.setattr(Engine, "screen", lambda *arguments, **options: 1 / 0)
        failed = await outcome(channel, "ModelInfer", raw(images), metadata=[("x-request-id", "abc")])
        assert failed.code() is grpc.StatusCode.INTERNAL
        assert failed.details() == "internal error; the log has it under request_id abc"

    run(scenario)
    (record,) = [record for record in caplog.records if record.name == "service.failures"]
    assert vars(record)["request_id"] == "abc"


def test_not_ready_is_an_answer_and_no_error(run, images):
    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        runtime.draining = True
        for name in ("ServerReady", "ModelReady"):
            request = messages.REQUESTS[name](**({"name": "digits"} if name == "ModelReady" else {}))
            answer = await outcome(channel, name, request)
            assert getattr(messages, f"{name}Response").FromString(answer).ready is False
        assert isinstance(await outcome(channel, "ModelInfer", raw(images)), bytes)

    run(scenario)


def test_a_flagged_image_is_withheld_where_the_policy_says_so(run):
    noise = np.random.default_rng(0).random((40, 1, 8, 8), np.float32)

    async def scenario(runtime: Runtime, channel: grpc.aio.Channel) -> None:
        answer = messages.ModelInferResponse.FromString(await outcome(channel, "ModelInfer", raw(noise)))
        outputs = dict(zip(OUTPUTS, answer.raw_output_contents, strict=True))
        flagged = np.frombuffer(outputs["flagged"], bool)
        assert flagged.any()
        assert (np.frombuffer(outputs["class_index"], np.int64)[flagged] == -1).all()
        assert (np.frombuffer(outputs["probabilities"], np.float32).reshape(40, 10)[flagged] == 0).all()

    run(scenario, policy="withhold")


def lgm_serve(*arguments: str, blocked: str = "") -> subprocess.CompletedProcess[str]:
    """`lgm serve` in a process where a module cannot be imported."""
    code = f"import sys; sys.modules[{blocked!r}] = None; from service.cli import app; app()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--workers", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def test_a_port_that_is_taken_is_one_line(digits_bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        finished = lgm_serve("--bundle", str(digits_bundle), "--grpc-port", port, "--log-level", "error")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == f"error: cannot listen on 127.0.0.1:{port} for gRPC (grpc_port)"
    assert "Traceback" not in finished.stderr


def test_without_the_extra_it_says_what_to_install():
    finished = lgm_serve("--grpc-port", "0", blocked="grpc")
    assert finished.returncode == 2
    assert finished.stderr == "error: grpc_port: grpc is missing; pip install 'lgm-guard[grpc]'\n"


def test_sigterm_under_load_fails_no_call(digits_bundle, images):
    server = Server("--bundle", str(digits_bundle), "--workers", "1", "--drain-seconds", "3", "--grpc-port", "0")
    server.await_ready()
    sending = threading.Semaphore(0)
    request = raw(images)

    def send_until_not_ready() -> int:
        count = 0
        with grpc.insecure_channel(server.grpc_address) as channel:
            while call(channel, "ServerReady", b"").ready:
                call(channel, "ModelInfer", request)
                count += 1
                sending.release()
        return count

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(send_until_not_ready) for _ in range(4)]
        for _ in range(40):
            assert sending.acquire(timeout=TIMEOUT)
        assert server.stop() == 0
        assert sum(load.result(TIMEOUT) for load in loads) >= 40
    assert [line for line in server.lines if line["level"] not in ("info", "warning")] == []
