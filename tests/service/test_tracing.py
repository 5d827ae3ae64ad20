"""traceparent with and without OpenTelemetry; spans by the SDK's own exporter in memory."""

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.errors import SettingsError
from service.key_file import append_key
from service.keys import make_key
from service.logs import ConsoleFormatter, Identities, JsonFormatter, request_state
from service.settings import load_settings
from service.spans import RequestSpans, resource
from service.tracing import parse_traceparent, spans_of
from tests.service.test_keys import key_of

URL = "/v1/predict"
PNG = {"content-type": "image/png"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def traced(make_client, exporter, monkeypatch):
    """Makes clients of apps whose spans end in the exporter."""

    def make(*, sampler=None, **given):
        provider = TracerProvider(resource=resource(), sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr("service.runtime.spans_of", lambda settings: RequestSpans(provider.get_tracer("test")))
        return make_client(**given)

    return make


@pytest.mark.parametrize(
    "value",
    [GIVEN, GIVEN[:-2] + "00", GIVEN.replace("00-", "01-", 1), GIVEN.replace("00-", "cc-", 1) + "-what-comes-later"],
)
def test_a_valid_one_is_taken_over(client, value):
    answered = client.get("/healthz", headers={"traceparent": value}).headers["traceparent"]
    assert answered == "00" + value[2:55]


MALFORMED = [
    "",
    "x",
    GIVEN.upper(),
    GIVEN + "-more",
    GIVEN.replace("00-", "ff-", 1),
    GIVEN.replace(TRACE, "0" * 32),
    GIVEN.replace(PARENT, "0" * 16),
    GIVEN.replace(TRACE, TRACE[:-1] + "g"),
    GIVEN.replace(TRACE, TRACE[:-1]),
    GIVEN.replace("-", "_"),
    f"00-{TRACE}-{PARENT}",
    f"0x-{TRACE}-{PARENT}-01",
]


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_one_is_ignored(client, value):
    response = client.get("/healthz", headers={"traceparent": value})
    assert response.status_code == 200
    assert "traceparent" not in response.headers


def field(size: int) -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.binary(min_size=size, max_size=size).map(lambda data: data.hex().encode()[:size]),
        st.sampled_from([b"0" * size, b"f" * size, b"0" * (size - 1) + b"1", b"F" * size, b"0" * (size - 1)]),
    )


@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(
            lambda fields, rest: b"-".join(fields) + rest,
            st.tuples(field(2), field(32), field(16), field(2)),
            st.sampled_from([b"", b"-", b"-\xff", b"x"]),
        ),
    )
)
def test_it_is_valid_exactly_where_opentelemetry_says_so(value):
    text = value.decode("latin-1")
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    theirs = get_current_span(context).get_span_context()
    ours = parse_traceparent(value)
    if ours is not None:
        assert int(ours.trace_id, 16) == theirs.trace_id
    elif text.strip() == text and "\n" not in text:
        assert not theirs.is_valid


def test_every_line_of_a_request_says_whose_it_is():
    record = logging.LogRecord("service", logging.INFO, "path", 1, "said", (), None)
    token = request_state.set({"request_id": "abc", "key": "ci-1", "trace_id": TRACE, "principal": "secret"})
    try:
        assert Identities().filter(record)
    finally:
        request_state.reset(token)
    line = json.loads(JsonFormatter().format(record))
    assert (line["request_id"], line["key"], line["trace_id"]) == ("abc", "ci-1", TRACE)
    assert ConsoleFormatter().format(record).endswith(f"said [abc key=ci-1 trace={TRACE}]")
    assert "secret" not in json.dumps(line)


def test_a_line_outside_of_requests_says_nothing_of_one():
    record = logging.LogRecord("service", logging.INFO, "path", 1, "said", (), None)
    assert Identities().filter(record)
    assert ConsoleFormatter().format(record).endswith("said")


def test_the_parts_of_a_request_are_spans_of_the_callers_trace(traced, exporter, digit_files, tmp_path):
    text = make_key()
    append_key(tmp_path / "keys.toml", key_of(text))
    headers = {**PNG, "traceparent": GIVEN, "tracestate": "vendor=1", "x-api-key": text, "x-request-id": "abc"}
    client = traced(api_keys=tmp_path / "keys.toml")
    response = client.post(URL + "?secret=1", content=digit_files[0], headers=headers)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {f"POST {URL}", "decode", "queue wait", "inference"}
    request = spans.pop(f"POST {URL}")
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert (request.parent.span_id, request.parent.is_remote) == (int(PARENT, 16), True)
    assert request.context.trace_state.get("vendor") == "1"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": URL,
        "http.response.status_code": 200,
        "lgm.request_id": "abc",
        "lgm.key": "ci-1",
        "lgm.num_images": 1,
    }
    assert response.headers["traceparent"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    for span in spans.values():
        assert span.context.trace_id == int(TRACE, 16)
        assert span.parent.span_id == request.context.span_id
        assert request.start_time - 10_000_000 <= span.start_time <= span.end_time <= request.end_time + 10_000_000
    assert spans["decode"].end_time <= spans["queue wait"].start_time + 1_000_000
    assert spans["queue wait"].end_time == spans["inference"].start_time


def test_without_a_callers_trace_one_begins(traced, exporter):
    response = traced().get("/healthz", headers={"traceparent": "broken"})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert response.headers["traceparent"].split("-")[1] == f"{span.context.trace_id:032x}"


def test_what_is_not_sampled_makes_no_spans_and_keeps_the_trace(traced, exporter, digit_files):
    response = traced(sampler=ALWAYS_OFF).post(URL, content=digit_files[0], headers={**PNG, "traceparent": GIVEN})
    assert exporter.get_finished_spans() == ()
    assert response.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert response.headers["traceparent"].endswith("-00")


def test_a_failure_is_a_failed_span_and_a_path_is_never_a_name(traced, exporter, digit_files):
    client = traced()
    client.get("/no/such/secret", headers={"x-api-key": "secret"})
    client.app.state.runtime.draining = True
    client.get("/readyz")
    unmatched, not_ready = exporter.get_finished_spans()
    assert (unmatched.name, unmatched.status.status_code) == ("GET", StatusCode.UNSET)
    assert (not_ready.name, not_ready.status.status_code) == ("GET /readyz", StatusCode.ERROR)
    assert "secret" not in unmatched.to_json() + not_ready.to_json()


@pytest.fixture
def _no_variables(monkeypatch):
    for name in ("ENDPOINT", "TRACES_ENDPOINT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)


@pytest.mark.usefixtures("_no_variables")
def test_traces_are_off_unless_asked_for(monkeypatch):
    assert spans_of(load_settings()) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert spans_of(load_settings()) is not None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert spans_of(load_settings()) is None
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert spans_of(load_settings()) is None
    assert spans_of(load_settings(trace_endpoint="http://127.0.0.1:9/v1/traces")) is not None


@pytest.mark.usefixtures("_no_variables")
def test_without_the_extra_the_setting_is_refused_and_the_variables_are_warned_about(monkeypatch, caplog):
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp", None)
    with pytest.raises(SettingsError, match=r"trace_endpoint: .*lgm-guard\[tracing\]"):
        spans_of(load_settings(trace_endpoint="http://127.0.0.1:9/v1/traces"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert spans_of(load_settings()) is None
    assert "lgm-guard[tracing]" in caplog.text


def test_the_service_has_a_name_that_variables_may_change(monkeypatch):
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    assert resource().attributes["service.name"] == "lgm-guard"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "digits")
    assert resource().attributes["service.name"] == "digits"
