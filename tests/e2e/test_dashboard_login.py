"""Who sees what, where API keys are set: over HTTP, and once in a browser."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import BrowserContext
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from service.dashboard.forwarding import MOST_REQUESTS
from service.dashboard.tabs import MOST_TABS_OF_ONE
from service.key_file import append_key, append_revocation
from service.keys import Role, make_key
from tests.e2e.browser import TIMEOUT_MILLISECONDS, Watched, chromium
from tests.e2e.test_dashboard import BOOT, PNG, dashboard_of, page_process
from tests.e2e.test_quarantine import await_true
from tests.server import TIMEOUT, Server
from tests.service.test_keys import key_of


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def keys(keys_file: Path) -> dict[str, str]:
    made = {role.label: make_key() for role in Role}
    for role in Role:
        append_key(keys_file, key_of(made[role.label], id=f"{role.label}-key", role=role))
    return made


@pytest.fixture(scope="module")
def guarded(keys: dict[str, str], keys_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = str(tmp_path_factory.mktemp("state"))
    server = Server(
        *("--workers", "1", "--drain-seconds", "0", "--state-folder", state, "--api-keys", str(keys_file))
    )
    try:
        server.await_ready()
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture
def client(guarded: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, timeout=TIMEOUT) as client:
        yield client


def log_in(client: httpx.Client, key: str) -> httpx.Response:
    return client.post("/dashboard/login", data={"key": key})


def ticket_of(client: httpx.Client) -> dict[str, str]:
    return {"cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items())}


def take_session(context: BrowserContext, client: httpx.Client) -> None:
    url = str(client.base_url)
    context.add_cookies([{"name": name, "value": value, "url": url} for name, value in client.cookies.items()])


def test_without_a_key_there_is_a_login_and_nothing_else(client: httpx.Client) -> None:
    for path in ("/dashboard/", "/dashboard/review", "/dashboard/kept/1/image", "/dashboard/_nicegui/nothing"):
        answer = client.get(path)
        assert answer.status_code == 303
        assert answer.headers["location"] == "/dashboard/login"
    page = client.get("/dashboard/login")
    assert page.status_code == 200
    assert "<script" not in page.text
    assert client.get("/dashboard/static/dashboard.css").status_code == 200
    assert client.post("/dashboard/_nicegui/client/x/upload/1").status_code == 401


@pytest.mark.parametrize("key", ["lgm_wrong", "", "two words", "x" * 5000, "kéy"])
def test_a_wrong_key_is_told_and_opens_nothing(client: httpx.Client, key: str) -> None:
    answer = log_in(client, key)
    assert answer.status_code in (401, 422)
    assert 'role="alert"' in answer.text
    assert "set-cookie" not in answer.headers


def test_logins_that_are_never_sent_whole_keep_nobody_out(
    guarded: Server, client: httpx.Client, keys: dict[str, str]
) -> None:
    address = urlsplit(guarded.url)
    head = f"POST /dashboard/login HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-length: 10\r\n\r\nk"
    with ExitStack() as stack:
        for _ in range(MOST_REQUESTS + 8):
            half = stack.enter_context(socket.create_connection((address.hostname, address.port), TIMEOUT))
            half.sendall(head.encode())
        for _ in range(3):
            assert log_in(client, keys["review"]).status_code == 303


def test_a_body_that_is_no_login_is_refused_before_it_is_there(client: httpx.Client) -> None:
    assert client.post("/dashboard/login", content=b"x" * 100_000).status_code == 413


def test_the_cookie_is_out_of_scripts_and_other_sites_reach_and_holds_no_key(
    client: httpx.Client, keys: dict[str, str]
) -> None:
    answer = log_in(client, keys["review"])
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    attributes = {part.strip().lower() for part in cookie.split(";")}
    assert {"httponly", "samesite=strict", "path=/dashboard"} <= attributes
    assert keys["review"] not in cookie
    assert client.get("/dashboard/").status_code == 200


def test_what_one_logs_in_to_opens_nothing_to_others(
    guarded: Server, client: httpx.Client, keys: dict[str, str]
) -> None:
    log_in(client, keys["admin"])
    assert client.get("/dashboard/about").status_code == 200
    for path in ("/dashboard/about", "/dashboard/kept/1/image", "/dashboard/reports/1/results.json"):
        assert httpx.get(f"{guarded.url}{path}", timeout=TIMEOUT).headers.get("location") == "/dashboard/login"
    assert "set-cookie" not in httpx.get(f"{guarded.url}/dashboard/login", timeout=TIMEOUT).headers
    httpx.post(f"{guarded.url}/dashboard/logout", timeout=TIMEOUT)
    assert client.get("/dashboard/about").status_code == 200


def test_who_may_only_predict_sees_the_playground_only(client: httpx.Client, keys: dict[str, str]) -> None:
    log_in(client, keys["predict"])
    for path in ("/", "/classes", "/drift", "/review", "/evaluation", "/about"):
        answer = client.get(f"/dashboard{path}")
        assert answer.status_code in (302, 307)
        assert answer.headers["location"] == "/dashboard/playground"
    page = client.get("/dashboard/playground").text
    assert "/dashboard/review" not in page
    assert client.get("/dashboard/kept/1/image").status_code == 403


def test_logging_out_ends_the_session_on_the_server(client: httpx.Client, keys: dict[str, str]) -> None:
    log_in(client, keys["admin"])
    ticket = ticket_of(client)
    assert client.get("/dashboard/about").status_code == 200
    assert client.post("/dashboard/logout").headers["location"] == "/dashboard/login"
    assert client.get("/dashboard/about", headers=ticket).status_code == 303


def test_logging_in_again_ends_the_session_before(client: httpx.Client, keys: dict[str, str]) -> None:
    log_in(client, keys["admin"])
    ticket = ticket_of(client)
    assert log_in(client, "lgm_wrong").status_code == 401
    assert client.get("/dashboard/about", headers=ticket).status_code == 200
    assert log_in(client, keys["predict"]).status_code == 303
    assert client.get("/dashboard/playground").status_code == 200
    client.cookies.clear()
    assert client.get("/dashboard/about", headers=ticket).status_code == 303


def test_whoami_tells_name_and_role(client: httpx.Client, keys: dict[str, str]) -> None:
    for role in keys:
        answer = client.get("/v1/whoami", headers={"x-api-key": keys[role]})
        assert answer.json() == {"name": f"{role}-key", "role": role}
    assert client.get("/v1/whoami").status_code == 401
    assert client.get("/v1/about", headers={"x-api-key": keys["predict"]}).status_code == 403
    told = client.get("/v1/about", headers={"x-api-key": keys["review"]}).json()["settings"]
    assert not {"api_keys", "quarantine_database", "tls_key", "bundle"} & set(told)


def test_the_audit_names_the_reviewers_key(guarded: Server, client: httpx.Client, keys: dict[str, str]) -> None:
    headers = {"x-api-key": keys["review"]}
    assert client.post("/v1/predict", content=BOOT, headers={**PNG, **headers}).status_code == 200
    with chromium() as browser:
        watched = Watched(browser.new_context(), guarded.url)
        page = watched.page
        page.goto(f"{guarded.url}/dashboard/review")
        page.get_by_label("API key").fill(keys["review"])
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Review").click()
        page.locator(".shot").wait_for()
        page.keyboard.press("b")
        page.get_by_text("takes it back").wait_for()
        assert page.evaluate("Object.values(localStorage).concat(document.cookie).join()").find("lgm_") < 0
        watched.assert_quiet()
    (item,) = client.get("/v1/quarantine", params={"state": "abnormal"}, headers=headers).json()["items"]
    assert item["reviewer"] == "review-key"
    lines = client.get(f"/v1/quarantine/{item['id']}/audit", headers=headers).json()["lines"]
    assert {line["who"] for line in lines} == {"review-key"}


def test_a_browser_shows_no_kept_image_again_once_its_user_has_left(
    guarded: Server, client: httpx.Client, keys: dict[str, str]
) -> None:
    headers = {**PNG, "x-api-key": keys["review"]}
    assert client.post("/v1/predict", content=BOOT, headers=headers).status_code == 200
    with chromium() as browser:
        page = Watched(browser.new_context(), guarded.url).page
        page.goto(f"{guarded.url}/dashboard/login")
        page.get_by_label("API key").fill(keys["review"])
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Review").click()
        page.wait_for_function("[...document.images].some((image) => image.naturalWidth)")
        image = page.locator(".shot img").get_attribute("src")
        ask = "(image) => fetch(image).then((answer) => answer.url)"
        assert page.evaluate(ask, image) == guarded.url + str(image)
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/dashboard/login")
        assert page.evaluate(ask, image) == f"{guarded.url}/dashboard/login"


def test_a_revoked_key_sees_nothing_more_in_new_pages_and_open_tabs(
    guarded: Server, client: httpx.Client, keys_file: Path
) -> None:
    key = make_key()
    append_key(keys_file, key_of(key, id="leaver", role=Role.REVIEW))
    await_true(lambda: log_in(client, key).status_code == 303)
    with chromium() as browser:
        context = browser.new_context()
        context.set_default_timeout(TIMEOUT_MILLISECONDS)
        take_session(context, client)
        page, stubborn = context.new_page(), context.new_page()
        stubborn.route("**/dashboard/", lambda route: route.abort())
        for tab in (page, stubborn):
            tab.goto(f"{guarded.url}/dashboard/classes")
            tab.locator(".rows").first.wait_for()
        append_revocation(keys_file, "leaver")
        revoked = time.monotonic()
        await_true(lambda: client.get("/dashboard/").status_code == 303)
        assert time.monotonic() - revoked < 15
        page.wait_for_url("**/dashboard/login")
        stubborn.locator(".rows").first.wait_for(state="detached")
        assert time.monotonic() - revoked < 30


def open_socket(client: httpx.Client) -> ClientConnection:
    """As a tab does, with the client's cookies."""
    address = urlsplit(str(client.base_url))
    cookies = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    return connect(
        f"ws://{address.netloc}/dashboard/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
        additional_headers={"cookie": cookies},
        open_timeout=TIMEOUT,
    )


def test_without_a_session_no_socket_is_opened(client: httpx.Client) -> None:
    with pytest.raises(InvalidStatus) as refused, open_socket(client):
        pass
    assert refused.value.response.status_code == 403


def test_a_key_that_holds_all_its_tabs_keeps_nobody_out_and_a_tab_too_many_comes_up_later(
    guarded: Server, client: httpx.Client, keys: dict[str, str]
) -> None:
    with ExitStack() as held, chromium() as browser:
        for _ in range(MOST_TABS_OF_ONE):
            log_in(client, keys["review"])
            held.enter_context(open_socket(client))
        with pytest.raises(InvalidStatus) as refused, open_socket(client):
            pass
        assert refused.value.response.status_code == 503
        context = browser.new_context()
        context.set_default_timeout(TIMEOUT_MILLISECONDS)
        for name, value in client.cookies.items():
            context.add_cookies([{"name": name, "value": value, "url": guarded.url}])
        page = context.new_page()
        with page.expect_event("console", lambda message: "503" in message.text):
            page.goto(f"{guarded.url}/dashboard/classes")
        with httpx.Client(base_url=guarded.url, timeout=TIMEOUT) as other:
            log_in(other, keys["admin"])
            with open_socket(other):
                held.close()
        page.wait_for_function("window.socket.connected")


def test_after_a_restart_of_the_page_an_open_tab_comes_to_the_login(
    guarded: Server, client: httpx.Client, keys: dict[str, str]
) -> None:
    log_in(client, keys["review"])
    with chromium() as browser:
        context = browser.new_context()
        context.set_default_timeout(TIMEOUT_MILLISECONDS)
        take_session(context, client)
        page = context.new_page()
        page.goto(f"{guarded.url}/dashboard/classes")
        page.locator(".rows").first.wait_for()
        page_process(guarded).kill()
        page.wait_for_url("**/dashboard/login")


def test_it_runs_apart_from_the_service_too(guarded: Server, keys: dict[str, str]) -> None:
    with dashboard_of(guarded) as client:
        assert client.get("/dashboard/").headers["location"] == "/dashboard/login"
        log_in(client, keys["admin"])
        assert client.get("/dashboard/").status_code == 200


def test_pages_of_one_machine_log_nobody_out_of_each_other(
    guarded: Server, client: httpx.Client, keys: dict[str, str]
) -> None:
    with dashboard_of(guarded) as other:
        pages = [f"{page.base_url}/dashboard" for page in (client, other)]
        for page in (*pages, pages[0]):
            assert client.post(f"{page}/login", data={"key": keys["review"]}).status_code == 303
        assert set(client.cookies) == {f"lgm_session_{page.base_url.port}" for page in (client, other)}
        assert [client.get(f"{page}/about").status_code for page in pages] == [200, 200]
        client.post(f"{pages[0]}/logout")
        assert [client.get(f"{page}/about").status_code for page in pages] == [303, 200]


def test_an_address_that_is_none_is_one_line_and_status_two() -> None:
    lgm = str(Path(sys.executable).with_name("lgm"))
    failed = subprocess.run([lgm, "dashboard", "--url", "nowhere"], capture_output=True, text=True, timeout=TIMEOUT)
    assert failed.returncode == 2
    assert "no URL" in failed.stderr
    assert failed.stderr.count("\n") == 1
