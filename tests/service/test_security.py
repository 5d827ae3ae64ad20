"""Who may do what, through the whole app."""

import asyncio
import sys
from contextlib import suppress

import pytest
from starlette.websockets import WebSocketDisconnect

from service.access import (
    LEAST_ROLES,
    OPEN_PATHS,
    Access,
    check_exposure,
    client_network,
    least_role,
    metadata_headers,
)
from service.app import create_app
from service.errors import KeyFileError, SettingsError, UnauthenticatedError
from service.key_file import append_key
from service.keys import Role, make_key
from service.monitoring.traffic import REFUSED
from service.security import Security
from service.settings import load_settings
from tests.service.test_keys import key_of

URL = "/v1/predict"
PNG = {"content-type": "image/png"}
ROLES = list(Role)


@pytest.fixture(scope="module")
def keys() -> dict[Role, str]:
    return {role: make_key() for role in Role}


@pytest.fixture
def keys_path(tmp_path, keys):
    path = tmp_path / "keys.toml"
    for role, text in keys.items():
        append_key(path, key_of(text, id=f"{role.label}-1", role=role))
    return path


@pytest.fixture
def guarded(make_client, keys_path):
    return make_client(api_keys=keys_path)


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_opens_as_bearer(guarded, keys, digit_files, scheme):
    headers = {**PNG, "authorization": f"{scheme} {keys[Role.PREDICT]}"}
    assert guarded.post(URL, content=digit_files[0], headers=headers).status_code == 200


def test_a_key_opens_in_its_own_header_also_beside_a_proxys_credentials(guarded, keys, digit_files):
    headers = {**PNG, "x-api-key": keys[Role.PREDICT], "authorization": "Basic dXNlcjpwYXNz"}
    assert guarded.post(URL, content=digit_files[0], headers=headers).status_code == 200


WRONG = {
    "none": {},
    "empty": {"authorization": "Bearer "},
    "no scheme": {"authorization": "lgm_x"},
    "another scheme": {"authorization": "Basic bGdtOmxnbQ=="},
    "wrong": {"authorization": "Bearer " + "lgm_" + "a" * 43},
    "huge": {"x-api-key": "a" * 10_000},
    "not ASCII": {"x-api-key": "ÿé".encode("latin-1")},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_without_a_valid_key_nothing_opens_and_nothing_is_told(guarded, headers, digit_files):
    refused = [
        guarded.post(URL, content=digit_files[0], headers={**PNG, **headers}),
        guarded.get("/openapi.json", headers=headers),
        guarded.get("/no/such/route", headers=headers),
        guarded.delete("/healthz/", headers=headers),
    ]
    for response in refused:
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer realm="lgm-guard"'
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"]
    assert len({response.json()["detail"] for response in refused}) == 1


def test_every_route_is_listed_with_the_role_that_it_asks_for(settings):
    paths = create_app(settings).openapi()["paths"]
    assert len(paths) > 4
    for path in paths:
        assert path in OPEN_PATHS or "/".join(path.split("/", 3)[:3]) in LEAST_ROLES, path


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/v1/predict", Role.PREDICT),
        ("POST", "/v2/models/mnist/infer", Role.PREDICT),
        ("POST", "/v2/models/mnist/versions/1/infer", Role.PREDICT),
        ("GET", "/v2/models/mnist", Role.PREDICT),
        ("GET", "/v1/models", Role.PREDICT),
        ("POST", "/v1/models/mnist/versions/1/activate", Role.ADMIN),
        ("DELETE", "/v1/models/mnist/versions/1", Role.ADMIN),
        ("GET", "/v1/quarantine", Role.REVIEW),
        ("GET", "/v1/quarantine/7/image", Role.REVIEW),
        ("PATCH", "/v1/quarantine/7", Role.REVIEW),
        ("GET", "/docs", Role.PREDICT),
        ("GET", "/docs/swagger-ui.css", Role.PREDICT),
        ("POST", "/v2/repository/index", Role.ADMIN),
        ("GET", "/v1/quarantines", Role.ADMIN),
        ("GET", "//v1/predict", Role.ADMIN),
        ("GET", "/V1/predict", Role.ADMIN),
        ("GET", "/v1", Role.ADMIN),
        ("GET", "", Role.ADMIN),
    ],
)
def test_the_table_says_which_role_a_route_asks_for(method, path, role):
    assert least_role(method, path) is role


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [("GET", "/openapi.json", Role.PREDICT), ("GET", "/v1/quarantine", Role.REVIEW), ("GET", "/new", Role.ADMIN)],
)
def test_a_role_includes_those_before_it(guarded, keys, role, method, path, needed):
    response = guarded.request(method, path, headers=bearer(keys[role]))
    assert (response.status_code == 403) == (role < needed)
    if role < needed:
        expected = f"this needs a key of role {needed.label}; this one's is {role.label}"
        assert response.json()["detail"] == expected
        assert "www-authenticate" not in response.headers


def test_probes_and_metrics_need_no_key_and_refusals_are_counted(guarded):
    guarded.get("/")
    assert [guarded.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
    assert 'lgm_rejected_total{reason="unauthenticated"} 1.0' in guarded.get("/metrics").text


def test_what_is_refused_before_its_route_counts_there(make_client, keys_path, keys, digit_files):
    client = make_client(api_keys=keys_path, rate_limit=0.001, rate_limit_burst=1)
    predict, infer = bearer(keys[Role.PREDICT]), "/v2/models/digits/infer"
    asked = [
        client.post(URL, content=digit_files[0], headers={**PNG, **predict}),
        client.post(URL, content=digit_files[0], headers={**PNG, **predict}),
        client.post(infer, json={}, headers=predict),
        client.post(URL, content=digit_files[0], headers=PNG),
        client.get("/v1/quarantine/7", headers=predict),
        client.get("/v1/quarantine/7/secret"),
    ]
    assert [response.status_code for response in asked] == [200, 429, 429, 401, 403, 401]
    told = client.get("/metrics").text
    for route, status in [
        (URL, 429),
        ("/v2/models/{name}/infer", 429),
        (URL, 401),
        ("/v1/quarantine/{item_id}", 403),
    ]:
        assert f'lgm_requests_total{{route="{route}",status="{status}"}} 1.0' in told
    assert 'lgm_requests_total{route="unmatched",status="401"} 1.0' in told
    _, buckets = client.app.state.runtime.traffic.buckets()  # what the monitor tells every other second
    assert buckets[:, REFUSED].sum() == 2


def test_a_refused_body_is_not_read(guarded):
    asyncio.run(refused_unread(guarded.app))


async def refused_unread(app) -> None:
    sent = []

    async def receive():
        raise AssertionError("the body of a refused request was asked for")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "headers": [], "http_version": "1.1"}
    await app(scope, receive, send)
    assert sent[0]["status"] == 401


def test_a_websocket_needs_a_key_too(guarded, keys):
    for headers in ({}, bearer(keys[Role.PREDICT])):
        with pytest.raises(WebSocketDisconnect) as caught, guarded.websocket_connect("/new", headers=headers):
            pass
        assert caught.value.code == 1008


def test_a_page_from_elsewhere_may_change_nothing_where_no_keys_are_set(client, digit_files):
    elsewhere = {**PNG, "origin": "https://evil.example"}
    refused = client.post(URL, content=digit_files[0], headers=elsewhere)
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:lgm-guard:problem:forbidden")
    own = {**PNG, "origin": "http://localhost"}
    assert client.post(URL, content=digit_files[0], headers=own).status_code == 200
    assert client.get("/", headers={"origin": "null"}).status_code == 200
    assert client.post(URL, content=digit_files[0], headers={**PNG, "origin": "null"}).status_code == 403
    with suppress(WebSocketDisconnect), client.websocket_connect("/new", headers={"origin": "https://evil.example"}):
        pytest.fail("it was let in")


def test_what_a_proxy_made_of_the_host_is_told_with_keys_and_without(client, guarded, digit_files):
    behind = {"origin": "https://guard.example", "host": "10.0.0.7:8000"}
    for refused in (
        client.post(URL, content=digit_files[0], headers={**PNG, **behind}),
        guarded.post("/dashboard/login", data={"key": "x"}, headers=behind),
    ):
        assert refused.status_code == 403
        assert refused.json()["detail"].startswith("Origin https://guard.example is not Host 10.0.0.7:8000: ")
        assert "must keep Host" in refused.json()["detail"]


OWN_HOSTS = ["localhost", "LOCALHOST:8000", "lgm.localhost", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7"]
FOREIGN_HOSTS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "[::", ""]


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_this_machine_is_asked_by_its_names_and_addresses(client, host):
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_name_that_was_made_to_lead_here_has_no_say(client, host):
    """DNS rebinding: to the browser the page and the service are then of one origin."""
    for headers in ({"host": host}, {"host": host, "x-forwarded-for": "10.0.0.7"}):
        refused = client.get("/v1/models", headers=headers)
        assert (refused.status_code, "Host" in refused.json()["detail"]) == (403, True)
    assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_any_name_is_good_where_everybody_may_ask_or_keys_decide(make_client, guarded, keys):
    name = {"host": "lgm.example"}
    assert make_client(allow_anonymous=True).get("/v1/models", headers=name).status_code == 200
    assert guarded.get("/v1/models", headers={**name, **bearer(keys[Role.PREDICT])}).status_code == 200


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Bearer {key}"),),
        (("x-api-key", "{key}"), ("user-agent", "grpc"), ("trace-bin", b"\0\xff")),
    ],
)
def test_grpc_metadata_opens_the_same_door(keys_path, keys, metadata):
    access = Access.of(load_settings(api_keys=keys_path))
    filled = [
        (name, value.format(key=keys[Role.REVIEW]) if isinstance(value, str) else value) for name, value in metadata
    ]
    principal = access.authenticate(metadata_headers(filled), "10.0.0.1")
    assert (principal.name, principal.role) == ("review-1", Role.REVIEW)
    for wrong in ((), None, (("authorization", "Bearer x"),)):
        with pytest.raises(UnauthenticatedError):
            access.authenticate(metadata_headers(wrong), "10.0.0.1")


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (("10.1.2.3", 5), "10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (("::ffff:10.1.2.3", 5), "10.1.2.3"),
        (None, "unknown"),
        (("a:b:c", 0), "a:b:c"),
        (("unknown", 0), "unknown"),
        (("x" * 1000, 0), "x" * 64),
    ],
)
def test_limits_without_keys_are_counted_by_the_network_of_one_subscriber(client, network):
    assert client_network(client) == network


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "2001:db8::1"])
def test_it_does_not_listen_to_other_machines_without_keys(address, keys_path):
    with pytest.raises(SettingsError, match=r"no API keys are set.*--api-keys.*--allow-anonymous"):
        check_exposure(load_settings(), address)
    check_exposure(load_settings(allow_anonymous=True), address)
    check_exposure(load_settings(api_keys=keys_path), address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1"])
def test_it_listens_to_its_own_machine(address):
    check_exposure(load_settings(), address)


def test_a_broken_key_file_starts_no_app(settings, tmp_path):
    with pytest.raises(KeyFileError, match=r"nothing\.toml cannot be read"):
        create_app(settings.model_copy(update={"api_keys": tmp_path / "nothing.toml"}))


def test_a_lookup_costs_next_to_nothing(keys_path, keys):
    """A hash, a look into a dictionary and a comparison, however many keys there are: counted in function calls."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    access = Access.of(load_settings(api_keys=keys_path))
    headers = {b"authorization": b"Bearer " + keys[Role.PREDICT].encode()}
    sys.setprofile(count)
    access.authenticate(headers, "10.0.0.1")
    sys.setprofile(None)
    assert calls < 40


def test_the_middleware_leaves_the_lifespan_alone():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(Security(app, Access(None), None)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
