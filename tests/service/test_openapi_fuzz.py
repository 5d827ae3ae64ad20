"""schemathesis over the OpenAPI document of a running server: no 5xx, and only answers that are documented."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi import checks

from tests.server import TIMEOUT, Server

ENDLESS = "/v1/monitor/stream"
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def schema(digits_bundle: Path) -> Iterator[BaseSchema]:
    server = Server("--bundle", str(digits_bundle), "--workers", "1", "--drain-seconds", "0")
    try:
        yield schemathesis.openapi.from_url(server.await_ready() + "/openapi.json")
    finally:
        server.stop()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_documented(schema, mode):
    operations = [result.ok() for result in schema.get_all_operations()]
    operations = [operation for operation in operations if operation.path != ENDLESS]
    paths = {operation.path for operation in operations}
    assert paths >= {"/", "/healthz", "/readyz", "/metrics", "/v1/predict", "/v1/models", "/v2"}
    for operation in operations:
        if mode is GenerationMode.POSITIVE or operation.body:  # nothing else can be wrong
            fuzz(operation, mode)


def fuzz(operation: APIOperation, mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        case.headers.pop("X-Deadline-Ms", None)  # that a millisecond is too short is no fault of the server's
        case.call_and_validate(checks=CHECKS, timeout=TIMEOUT)

    check()
