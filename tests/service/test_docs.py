"""The page /docs brings all it needs."""

import re

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


def test_the_document_says_where_keys_are_needed(client):
    document = client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    predict, probe = document["paths"]["/v1/predict"]["post"], document["paths"]["/healthz"]["get"]
    assert {"bearer": []} in predict["security"]
    assert {"401", "403", "429", "503"} <= set(predict["responses"])
    assert "security" not in probe
    assert "401" not in probe["responses"]
