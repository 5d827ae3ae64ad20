"""schemathesis over the OpenAPI document, in process: whatever it invents, no 5xx and only documented answers."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi import checks

from service.app import create_app
from service.engine import Engine
from service.runtime import Runtime

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def schema(digits_screener, settings) -> Iterator[BaseSchema]:
    runtime = Runtime(settings=settings)
    runtime.engine = Engine(digits_screener, settings=settings, metrics=runtime.metrics)
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(settings, runtime=runtime))
    runtime.engine.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_documented(schema, mode):
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/predict",
        "/v2",
    }
    for operation in operations:
        if mode is GenerationMode.POSITIVE or operation.body:  # nothing else can be wrong
            fuzz(operation, mode)


def fuzz(operation: APIOperation, mode: GenerationMode) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    check()
