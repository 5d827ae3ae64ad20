"""Pages get one nonce a page, everything gets a policy."""

import re

import pytest
from starlette.responses import HTMLResponse, Response
from starlette.testclient import TestClient

from service.dashboard.headers import PageHeaders

PAGE = "<html><script>one()</script><script src='two.js'></script></html>"


def answer(response: Response):
    return TestClient(PageHeaders(response)).get("/")


def test_every_script_of_a_page_has_the_policys_nonce():
    found = answer(HTMLResponse(PAGE))
    (nonce,) = re.findall(r"'nonce-([^']+)'", found.headers["content-security-policy"])
    assert found.text.count(f'<script nonce="{nonce}"') == found.text.count("<script") == 2
    assert int(found.headers["content-length"]) == len(found.content)


def test_no_two_pages_have_the_same():
    policies = {answer(HTMLResponse(PAGE)).headers["content-security-policy"] for _ in range(3)}
    assert len(policies) == 3


def test_scripts_without_it_do_not_run():
    policy = answer(HTMLResponse(PAGE)).headers["content-security-policy"]
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "unsafe-inline" not in scripts
    assert "http" not in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("kind", ["text/css", "image/png"])
def test_what_is_no_page_goes_through_as_it_is(kind):
    found = answer(Response(PAGE, media_type=kind))
    assert found.text == PAGE
    assert found.headers["x-content-type-options"] == "nosniff"


def test_a_policy_of_its_own_and_what_it_says_of_caching_stay():
    own = {"content-security-policy": "sandbox; default-src 'none'", "cache-control": "private, max-age=60"}
    found = answer(HTMLResponse(PAGE, headers=own))
    assert found.text == PAGE
    assert {name: found.headers[name] for name in own} == own
    assert "cache-control" in answer(HTMLResponse(PAGE)).headers
