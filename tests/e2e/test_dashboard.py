"""The page in a real browser, on a real service under real traffic."""

import base64
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from detectors import SHIPPED_BUNDLE
from service.dashboard.experiment import perform
from service.dashboard.findings import Experiment
from tests.e2e.browser import TIMEOUT_MILLISECONDS, Watched, chromium
from tests.e2e.test_readmes import REPOSITORY
from tests.server import TIMEOUT, Server
from tests.service.dashboard.test_runs import RESULT, json

PAGES = ("/", "/classes", "/drift", "/review", "/evaluation", "/playground", "/about")
PHONE = {"width": 360, "height": 740}
SEVEN = (REPOSITORY / "tests" / "samples" / "seven.png").read_bytes()
BOOT = (REPOSITORY / "tests" / "samples" / "ankle-boot.png").read_bytes()
PNG = {"content-type": "image/png"}
CHANNEL = "/dashboard/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
HANDSHAKE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}
expect.set_options(timeout=TIMEOUT_MILLISECONDS)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    (folder / "first").mkdir()
    (folder / "first" / "results.json").write_text(json.dumps(RESULT))
    (folder / "first" / "report.html").write_text("<title>report</title><h1>A report</h1><script>alert(1)</script>")
    return folder


@pytest.fixture(scope="module")
def server(reports: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = str(tmp_path_factory.mktemp("state"))
    server = Server(
        *("--workers", "1", "--drain-seconds", "0", "--state-folder", state, "--reports", str(reports)),
        *("--quarantine", "all"),
    )
    try:
        server.await_ready()
        with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
            for content in (*[SEVEN] * 12, *[BOOT] * 3):
                assert client.post("/v1/predict", content=content, headers=PNG).status_code == 200
        yield server
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def watched(browser: Browser, server: Server) -> Iterator[Watched]:
    """One tab for many tests: opening pages costs more than looking at them."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield Watched(context, server.url)
    context.close()


def newest(server: Server, **chosen: str) -> str:
    """Where the newest item that was kept and is so is found."""
    item = httpx.get(f"{server.url}/v1/quarantine", params=chosen, timeout=TIMEOUT).json()["items"][0]
    return f"{server.url}/v1/quarantine/{item['id']}"


def review(item: str, state: str) -> None:
    """As somebody else does."""
    revision = httpx.get(item, timeout=TIMEOUT).json()["revision"]
    answer = httpx.patch(item, json={"state": state}, headers={"if-match": f'"{revision}"'}, timeout=TIMEOUT)
    assert answer.status_code == 200


def page_process(server: Server) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    (found,) = [process for process in children if "service.dashboard" in process.cmdline()]
    return found


@contextmanager
def dashboard_of(server: Server, *arguments: str) -> Iterator[httpx.Client]:
    """`lgm dashboard` in a process of its own."""
    lgm = str(Path(sys.executable).with_name("lgm"))
    command = [lgm, "dashboard", "--url", server.url, "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listening on" in line)
        url = line.split("listening on ")[1].split("/dashboard")[0]
        with httpx.Client(base_url=url, timeout=TIMEOUT) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT)
    assert process.returncode in (0, -15)


def settle(page: Page, path: str) -> None:
    """Until it shows what it is about."""
    shown = {
        "/": ".figures",
        "/classes": ".rows",
        "/drift": ".banner",
        "/review": ".shot",
        "/evaluation": "table",
        "/playground": ".plane",
        "/about": ".facts",
    }
    page.locator(shown[path]).first.wait_for()


@pytest.mark.parametrize("path", PAGES)
def test_every_page_shows_what_it_is_about_and_fits_a_phone_in_both_themes(watched: Watched, path: str) -> None:
    page = watched.open(path)
    settle(page, path)
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        found = Axe().run(page, options={"resultTypes": ["violations"]})
        assert not found.response["violations"], found.generate_report()
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 900})
    watched.assert_quiet()


def test_an_attack_run_shows_on_the_charts_within_seconds_and_on_a_phone(watched: Watched, server: Server) -> None:
    page = watched.open("/")
    share = page.locator(".figures > div", has_text="Flagged").locator(".value")
    before = float(re.sub(r"[^\d.]", "", share.inner_text()))
    chart = page.get_by_role("img", name=re.compile("Histogram of p-values"))
    drawn = chart.inner_html()
    finding = perform(Experiment(bundle=SHIPPED_BUNDLE, image=base64.b64encode(SEVEN).decode(), eps=0.1))
    attacked = base64.b64decode(finding.attacked_image)
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        for _ in range(20):
            assert client.post("/v1/predict", content=attacked, headers=PNG).json()["predictions"][0]["flagged"]
    sent = time.monotonic()
    page.wait_for_function(
        "(before) => parseFloat([...document.querySelectorAll('.figures > div')]"
        ".find(one => one.textContent.startsWith('Flagged')).querySelector('.value').textContent) > before",
        arg=before,
    )
    assert time.monotonic() - sent < 10
    assert chart.inner_html() != drawn
    expect(page.locator(".banner").first).to_contain_text("unlike the calibration")
    page = watched.open("/drift")
    evidence = page.get_by_role("row").nth(1).locator("td").last
    page.set_viewport_size(PHONE)
    expect(evidence).to_contain_text(": 1")
    expect(evidence).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 1280, "height": 900})
    watched.assert_quiet()


def test_a_playground_attack_flips_the_label_and_drops_the_likelihood(watched: Watched) -> None:
    page = watched.open("/playground")
    verdict = page.locator(".verdict")
    page.get_by_role("button", name="Sample: 7").click()
    expect(verdict).to_contain_text("Taken for 7")
    expect(verdict).to_contain_text("not flagged")
    likelihood = page.locator("tr", has_text="Log-likelihood")
    page.locator("#eps").fill("0.2")
    expect(verdict).to_contain_text("Was taken for 7, now for")
    clean, attacked = (
        float(text.split()[0].replace("−", "-")) for text in likelihood.locator("td").all_inner_texts()
    )
    assert attacked < clean - 1
    expect(verdict.locator(".tag")).to_have_text("flagged")
    page.locator("#attack").select_option("bim")
    expect(page.locator("#steps")).to_be_visible()
    page.get_by_role("button", name="Sample: ankle boot").click()
    page.locator("#eps").fill("0")
    expect(verdict).to_contain_text("Taken for")
    watched.assert_quiet()


def test_what_is_drawn_or_uploaded_is_judged(watched: Watched) -> None:
    page = watched.open("/playground")
    image = page.locator(".trio img").first
    image.wait_for()
    before = image.get_attribute("src")
    box = page.locator("canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 20, steps=8)
    page.mouse.up()
    expect(image).not_to_have_attribute("src", before or "")
    drawn = image.get_attribute("src")
    page.locator("#file").set_input_files({"name": "7.png", "mimeType": "image/png", "buffer": SEVEN})
    expect(image).not_to_have_attribute("src", drawn or "")
    page.locator("#file").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no image"})
    expect(page.get_by_role("alert").filter(has_text="not an image")).to_be_visible()
    watched.assert_quiet()


def test_a_review_is_done_by_keyboard_and_undone(watched: Watched, server: Server) -> None:
    def states() -> dict[str, int]:
        counts: dict[str, int] = httpx.get(f"{server.url}/v1/quarantine", timeout=TIMEOUT).json()["counts"]
        return counts

    page = watched.open("/review")
    page.locator(".shot").wait_for()
    thumbnails = page.locator(".items button")
    options = page.locator("#state option")
    new = states()["new"]
    expect(options.nth(1)).to_have_text(f"new ({new})")
    expect(thumbnails.first).to_have_attribute("aria-current", "true")
    page.keyboard.press("j")
    expect(thumbnails.nth(1)).to_have_attribute("aria-current", "true")
    page.keyboard.press("k")
    expect(thumbnails.first).to_have_attribute("aria-current", "true")
    page.locator("#reason").fill("no digit")
    page.locator("h1").click()
    page.keyboard.press("b")
    expect(thumbnails.first).to_contain_text("abnormal")
    expect(thumbnails.nth(1)).to_have_attribute("aria-current", "true")
    page.keyboard.press("a")
    expect(thumbnails.nth(1)).to_contain_text("adversarial")
    assert states() == {**states(), "new": new - 2, "abnormal": 1, "confirmed_adversarial": 1}
    expect(options.nth(1)).to_have_text(f"new ({new - 2})")
    expect(options.filter(has_text="abnormal")).to_have_text("abnormal (1)")
    page.keyboard.press("k")
    page.keyboard.press("k")
    expect(page.get_by_label("Input", exact=True)).to_contain_text("no digit")
    expect(page.get_by_label("Input", exact=True)).to_contain_text("Reviewed by127.0.0.1: no digit")
    page.keyboard.press("u")
    expect(thumbnails.nth(1)).to_contain_text("new")
    assert states() == {**states(), "new": new - 1, "abnormal": 1}
    expect(options.nth(1)).to_have_text(f"new ({new - 1})")
    expect(page.get_by_label("Input", exact=True)).not_to_contain_text("Reviewed by")
    expect(page.get_by_label("Input", exact=True)).to_contain_text("Nearest class means")
    watched.assert_quiet()


def test_a_phone_shows_what_was_chosen(watched: Watched) -> None:
    page = watched.open("/review")
    page.locator(".shot").wait_for()
    page.set_viewport_size(PHONE)
    shown = page.get_by_label("Input", exact=True).get_by_role("heading", name="Input")
    expect(shown).not_to_be_in_viewport()
    page.locator(".items button").nth(1).click()
    expect(shown).to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate("scrollTo(0, 0)")
    page.locator(".items button").first.click()
    expect(page.locator(".items button").first).to_have_attribute("aria-current", "true")
    assert page.evaluate("scrollY") == 0
    watched.assert_quiet()


def test_a_wrong_filter_is_told_by_its_title(watched: Watched) -> None:
    page = watched.open("/review")
    limit = page.get_by_label("p-value at most")
    expect(limit).to_have_attribute("inputmode", "decimal")
    limit.fill("2")
    limit.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("p-value at most: Input should be less than or equal to 1")
    limit.fill("0.5")
    limit.press("Enter")
    expect(page.get_by_text("Input should be")).to_have_count(0)
    watched.assert_quiet()


def test_who_comes_second_is_told(watched: Watched, server: Server) -> None:
    page = watched.open("/review")
    page.locator(".shot").wait_for()
    review(newest(server, state="new"), "released")
    page.keyboard.press("f")
    expect(page.get_by_text("Somebody else has reviewed it meanwhile")).to_be_visible()
    expect(page.locator(".items button").first).to_contain_text("released")
    watched.assert_quiet()


def test_what_somebody_else_has_decided_meanwhile_is_not_undone(watched: Watched, server: Server) -> None:
    page = watched.open("/review")
    page.locator(".shot").wait_for()
    first = page.locator(".items button").first
    told = page.get_by_role("status")
    path = newest(server, state="new")
    for key, title in (("a", "adversarial"), ("b", "abnormal")):
        page.keyboard.press(key)
        expect(first).to_contain_text(title)
        page.keyboard.press("k")
        expect(first).to_have_attribute("aria-current", "true")
    for title in ("adversarial", "new"):
        page.keyboard.press("u")
        expect(told).to_contain_text(f"is {title} again")
        expect(first).to_contain_text(title)
    page.keyboard.press("a")
    expect(first).to_contain_text("adversarial")
    for state in ("in_review", "abnormal"):
        review(path, state)
    page.keyboard.press("u")
    expect(told).to_contain_text("Somebody else has reviewed it meanwhile")
    expect(first).to_contain_text("abnormal")
    expect(first).to_have_attribute("aria-current", "true")
    assert httpx.get(path, timeout=TIMEOUT).json()["state"] == "abnormal"
    watched.assert_quiet()


def test_what_was_not_flagged_is_no_false_positive(watched: Watched, server: Server) -> None:
    page = watched.open("/review")
    offered = page.get_by_role("button", name="False positive")
    expect(offered).to_be_visible()
    label = page.get_by_label("Label")
    label.fill("7")
    label.press("Enter")
    expect(offered).to_be_hidden()
    item = newest(server, state="new", label="7", flagged="false")
    first = page.locator(".items button").first
    page.locator("h1").click()
    for state in ("new", "released"):
        page.keyboard.press("f")
        expect(page.get_by_role("status")).to_contain_text("not flagged")
        assert httpx.get(item, timeout=TIMEOUT).json()["state"] == state
        page.keyboard.press("r")
        expect(first).to_contain_text("released")
        page.keyboard.press("k")
        expect(first).to_have_attribute("aria-current", "true")
    watched.assert_quiet()


def test_a_report_opens_and_runs_nothing(watched: Watched, server: Server) -> None:
    page = watched.open("/evaluation")
    caught = page.get_by_role("row", name=re.compile("fgsm")).locator("td").nth(1)
    expect(caught).to_have_text("70\u00a0%")
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.get_by_role("columnheader", name="caught at 1 %")).to_be_in_viewport(ratio=1)
    expect(caught).to_be_in_viewport(ratio=1)
    page.set_viewport_size({"width": 1280, "height": 900})
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Open the report").click()
    expect(opened.value.locator("h1")).to_have_text("A report")
    opened.value.close()
    policy = httpx.get(f"{server.url}/dashboard/reports/first/report.html").headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert httpx.get(f"{server.url}/dashboard/reports/first/..%2f..%2fetc%2fpasswd").status_code == 404
    watched.assert_quiet()


def test_the_theme_is_remembered(watched: Watched) -> None:
    page = watched.open("/")
    button = page.get_by_role("button", name=re.compile("Colours"))
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button.click()
    button.click()
    expect(button).to_have_attribute("title", "Colours: dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    watched.open("/")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    button.click()
    watched.assert_quiet()


def test_the_pages_process_may_die_and_comes_again(server: Server) -> None:
    """Predictions do not notice; the page is back by itself."""
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        page_process(server).kill()
        for _ in range(20):
            assert client.post("/v1/predict", content=SEVEN, headers=PNG).status_code == 200
        assert client.get("/dashboard/about").status_code in (200, 503)
        server.await_lines(1, level="error", logger="service.dashboard.parent")
        assert client.get("/dashboard/about").status_code == 200


def test_a_browser_writes_nothing_into_the_log(watched: Watched, server: Server) -> None:
    page = watched.open("/about")
    page.wait_for_function("window.did_handshake")
    page.evaluate(
        "new Promise((done) => socket.emit('log', {client_id: clientId, level: 'error', message: 'forged'}, done))"
    )
    later = f"{server.url}/dashboard/nowhere"
    assert httpx.get(later, timeout=TIMEOUT).status_code == 404
    server.await_lines(1, message=f"{later} not found")
    assert not [line for line in server.lines if line["message"] == "forged"]
    watched.assert_quiet()


def test_pages_from_elsewhere_have_no_say(server: Server) -> None:
    elsewhere = {"origin": "https://evil.example"}
    assert httpx.post(f"{server.url}/dashboard/login", data={"key": "x"}, headers=elsewhere).status_code == 403
    assert httpx.get(server.url + CHANNEL, headers={**elsewhere, **HANDSHAKE}).status_code == 403


def test_without_keys_a_name_that_was_made_to_lead_to_this_machine_opens_nothing(server: Server) -> None:
    with dashboard_of(server) as client:
        port = client.base_url.port
        led = {"host": f"evil.example:{port}", "origin": f"http://evil.example:{port}"}
        assert client.post("/dashboard/login", data={"key": "x"}, headers=led).status_code == 303
        for path, headers in (("/dashboard/about", led), (CHANNEL, {**led, **HANDSHAKE})):
            assert client.get(path, headers=headers).status_code == 403
        for host in ("127.0.0.1", f"localhost:{port}", f"[::1]:{port}"):
            assert client.get("/dashboard/about", headers={"host": host}).status_code == 200


def test_without_keys_other_machines_see_the_page_where_that_was_said_and_by_any_name(server: Server) -> None:
    with dashboard_of(server, "--host", "0.0.0.0") as client:
        assert client.get("/dashboard/about").status_code == 403
        assert client.post("/dashboard/login", data={"key": "x"}).status_code == 303
        assert client.get("/dashboard/about").status_code == 403
    with dashboard_of(server, "--host", "0.0.0.0", "--allow-anonymous") as client:
        assert client.get("/dashboard/about", headers={"host": "guard.example"}).status_code == 200
