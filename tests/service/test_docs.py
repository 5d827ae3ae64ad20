"""The page /docs brings all it needs."""

import re

import pytest

from service.docs import ASSETS, FILES, PAGE


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get(PAGE)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {f"/{path}" for path in loaded} == set(ASSETS)
    assert "//" not in page.text
    assert "https:" not in page.headers["content-security-policy"]
    assert "unsafe-eval" not in page.headers["content-security-policy"]
    assert "script-src 'self';" in page.headers["content-security-policy"]


def test_what_it_loads_is_there(client):
    for path, media_type in FILES.items():
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(media_type)
        assert len(response.content) > 500
    assert "SwaggerUIBundle" in client.get("/docs/swagger-ui-bundle.js").text
    assert 'url: "openapi.json"' in client.get("/docs/start.js").text


def test_no_other_file_is_given(client):
    for path in ("/docs/main.py", "/docs/..%2fmain.py", "/docs/%2e%2e/main.py", "/docs/nothing"):
        assert client.get(path).status_code == 404


def headers_of(document, operation) -> set[str]:
    parameters = [resolved(document, parameter) for parameter in operation.get("parameters", ())]
    return {parameter["name"] for parameter in parameters if parameter["in"] == "header"}


def resolved(document, parameter):
    return document["components"]["parameters"].get(parameter.get("$ref", "").rpartition("/")[2], parameter)


COMMON = {"X-Request-ID", "traceparent"}
LENGTH = "Inference-Header-Content-Length"


@pytest.mark.parametrize(
    ("method", "path", "taken", "told"),
    [
        ("get", "/healthz", set(), set()),
        ("post", "/v1/predict", {"X-Deadline-Ms", "Content-Encoding"}, set()),
        ("post", "/v2/models/{name}/infer", {LENGTH, "X-Deadline-Ms", "Content-Encoding"}, {LENGTH}),
        (
            "post",
            "/v2/models/{name}/versions/{version}/infer",
            {LENGTH, "X-Deadline-Ms", "Content-Encoding"},
            {LENGTH},
        ),
        ("get", "/v1/quarantine/{item_id}", set(), {"ETag"}),
        ("patch", "/v1/quarantine/{item_id}", {"if-match"}, {"ETag"}),
    ],
)
def test_the_document_tells_the_headers(client, method, path, taken, told):
    document = client.get("/openapi.json").json()
    operation = document["paths"][path][method]
    assert headers_of(document, operation) == COMMON | taken
    limited = set() if path == "/healthz" else {"RateLimit-Policy", "RateLimit"}
    assert set(operation["responses"]["200"]["headers"]) == COMMON | limited | told


def test_the_document_tells_the_headers_of_refusals(client):
    document = client.get("/openapi.json").json()
    responses = document["paths"]["/v1/predict"]["post"]["responses"]
    assert "WWW-Authenticate" in responses["401"]["headers"]
    for status in ("429", "503"):
        assert "Retry-After" in responses[status]["headers"]
    for response in responses.values():
        for name, header in response["headers"].items():
            assert header == {"$ref": f"#/components/headers/{name}"}
            assert name in document["components"]["headers"]


def test_the_document_says_where_keys_are_needed(client):
    document = client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    predict, probe = document["paths"]["/v1/predict"]["post"], document["paths"]["/healthz"]["get"]
    assert {"bearer": []} in predict["security"]
    assert {"401", "403", "429", "503"} <= set(predict["responses"])
    assert "security" not in probe
    assert "401" not in probe["responses"]
