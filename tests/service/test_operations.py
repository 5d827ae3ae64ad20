import json
import logging
import re
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.logs import ConsoleFormatter, JsonFormatter

URL = "/v1/predict"
PNG = {"content-type": "image/png"}

METRICS = {
    "lgm_requests_total": {"route", "status"},
    "lgm_request_duration_seconds_count": {"route"},
    "lgm_images_total": {"decision"},
    "lgm_log_likelihood_bucket": {"le"},
    "lgm_log_likelihood_count": set(),
    "lgm_p_value_bucket": {"le"},
    "lgm_p_value_count": set(),
    "lgm_p_value_sum": set(),
    "lgm_detector_p_value_bucket": {"detector", "le"},
    "lgm_queue_depth": set(),
    "lgm_queue_wait_seconds_count": set(),
    "lgm_batch_size_count": set(),
    "lgm_inference_duration_seconds_count": set(),
    "lgm_rejected_total": {"reason"},
    "lgm_class_images_total": {"label", "decision"},
    "lgm_calibration_timestamp_seconds": {"name", "version"},
    "lgm_drift_alarms": {"kind"},
    "lgm_quarantine_total": {"outcome"},
    "lgm_quarantine_queue_depth": set(),
    "lgm_quarantine_bytes": set(),
    "lgm_quarantine_items": {"state"},
    "lgm_rate_limit_store_up": set(),
    "lgm_worker_up": set(),
    "lgm_worker_restarts_total": set(),
    "lgm_model_info": {"name", "version"},
    "lgm_false_alarm_target_ratio": set(),
}


def samples(client) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_index_leads_to_routes_that_answer(client):
    body = client.get("/").json()
    assert body["name"] == "lgm-guard"
    links = [path for name, path in body["links"].items() if name != "predict"]
    assert [client.get(path).status_code for path in links] == [200] * len(links)


def test_head_is_answered_as_get_is(client):
    for path in ("/", "/healthz", "/readyz", "/metrics", "/v2/health/ready", "/v1/models"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"] == client.get(path).headers["content-type"]
    assert client.head(URL).status_code == 405
    assert ("lgm_requests_total", "/v1/models", "200") in samples(client)


def test_both_formats_of_metrics_parse_and_tell_the_same(client, digit_files):
    for content in (digit_files[0], b"bad"):
        client.post(URL, content=content, headers=PNG)
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    families = list(open_metrics.text_string_to_metric_families(client.get("/metrics", headers=accept).text))
    assert {f"lgm_{name}" for name in ("requests", "log_likelihood", "p_value")} <= {one.name for one in families}
    told = {sample.name for family in families for sample in family.samples}
    assert METRICS.keys() - told == {"lgm_log_likelihood_count"}  # there a count needs a sum


def test_alive_and_ready(client, digits_screener):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {
        "status": "ready",
        "model": {"name": digits_screener.name, "version": digits_screener.version},
    }


def test_before_the_model_is_loaded_it_is_alive_and_not_ready(settings, digit_files):
    client = TestClient(create_app(settings), base_url="http://localhost")  # not entered: its start-up has not run
    assert client.get("/healthz").status_code == 200
    for response in (client.get("/readyz"), client.post(URL, content=digit_files[0], headers=PNG)):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["detail"] == "the model is not loaded yet"


@pytest.mark.parametrize("name", ["digits", "another"])
def test_before_the_model_is_loaded_no_name_is_unknown(settings, name):
    client = TestClient(create_app(settings), base_url="http://localhost")  # not entered: its start-up has not run
    for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/1"):
        for response in (client.get(path), client.get(f"{path}/ready"), client.post(f"{path}/infer", json={})):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["type"].endswith(":not-ready")
    assert client.post(f"/v1/models/{name}/rollback").status_code == 503


def test_while_draining_it_answers_but_is_not_ready(make_client, digit_files):
    client = make_client()
    client.app.state.runtime.draining = True
    assert client.get("/readyz").status_code == 503
    response = client.post(URL, content=digit_files[0], headers=PNG)
    assert response.status_code == 200
    assert response.headers["connection"] == "close"


def test_the_callers_request_id_is_kept_where_it_is_sane(client):
    assert client.get("/healthz", headers={"x-request-id": "a-B_1.2"}).headers["x-request-id"] == "a-B_1.2"


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"b', "<script>", "é"])
def test_another_is_made_where_it_is_not(client, given):
    made = client.get("/healthz", headers={b"x-request-id": given.encode()}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


def test_security_headers_stand_on_every_answer(client):
    for path in ("/", "/nothing", "/metrics"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cache-control"] == "no-store"


def test_metrics_have_the_documented_names_and_labels(client, digit_files):
    client.post(URL, content=digit_files[0], headers=PNG)
    client.post(URL, content=b"", headers=PNG)
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = {sample.name: set(sample.labels) for family in families for sample in family.samples}
    assert {name: found.get(name) for name in METRICS} == METRICS
    assert {re.sub("_(total|bucket|count|sum)$", "", name) for name in found} == {
        re.sub("_(total|bucket|count|sum)$", "", name) for name in METRICS
    }


def test_metrics_count_what_happened(make_client, digit_files, abnormal_file, digits_screener):
    client = make_client()
    good = client.post(URL, content=digit_files[0], headers=PNG).json()["predictions"][0]
    files = [("image", ("a", file)) for file in (abnormal_file, digit_files[1], b"bad")]
    client.post(URL, files=files)
    client.post(URL, content=b"bad", headers=PNG)
    client.post(URL, content=b"bad", headers={"content-type": "text/plain"})
    client.get("/secret/path")
    seen = samples(client)
    assert seen["lgm_requests_total", "/v1/predict", "200"] == 2
    assert seen["lgm_requests_total", "/v1/predict", "422"] == 1
    assert seen["lgm_requests_total", "404", "unmatched"] == 1
    assert seen["lgm_request_duration_seconds_count", "/v1/predict"] == 4
    assert seen["lgm_images_total", "accepted"] == 2
    assert seen["lgm_images_total", "flagged"] == 1
    assert seen["lgm_images_total", "rejected"] == 2
    assert seen["lgm_rejected_total", "invalid-input"] == 1
    assert seen["lgm_rejected_total", "unsupported-media-type"] == 1
    assert seen["lgm_batch_size_sum",] == seen["lgm_log_likelihood_count",] == 3
    assert seen["lgm_inference_duration_seconds_count",] == seen["lgm_queue_wait_seconds_count",] == 2
    assert seen["lgm_queue_depth",] == 0
    assert seen["lgm_false_alarm_target_ratio",] == digits_screener.false_alarm_rate
    assert seen["lgm_p_value_count",] == 3
    assert seen["lgm_p_value_sum",] > good["p_value"]
    assert seen["lgm_model_info", *sorted([digits_screener.name, digits_screener.version])] == 1
    assert "secret" not in client.get("/metrics").text


@pytest.mark.parametrize(
    "wrong",
    [
        {"json": {"instances": []}},
        {"content": b"{"},
        {"content": b"bad", "headers": PNG | {"x-deadline-ms": "soon"}},
    ],
)
def test_what_held_no_image_rejects_none(client, wrong):
    before = samples(client).get(("lgm_images_total", "rejected"))
    assert 400 <= client.post(URL, **wrong).status_code < 500
    assert samples(client).get(("lgm_images_total", "rejected")) == before


def test_what_the_framework_serves_counts_under_its_route(client):
    before = samples(client).get(("lgm_requests_total", "/openapi.json", "200"), 0)
    client.get("/openapi.json")
    assert samples(client)["lgm_requests_total", "/openapi.json", "200"] == before + 1


def test_openapi_tells_the_request_forms_and_the_problems(client):
    document = client.get("/openapi.json").json()
    operation = document["paths"][URL]["post"]
    assert set(operation["requestBody"]["content"]) >= {"image/png", "multipart/form-data", "application/json"}
    assert set(operation["responses"]["422"]["content"]) == {"application/problem+json"}
    assert set(operation["responses"]["200"]["content"]) == {"application/json"}
    defined = document["components"]["schemas"]
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert used <= set(defined)
    assert "$defs" not in json.dumps(document)


def test_each_request_leaves_one_line_with_its_id(client, caplog):
    caplog.set_level(logging.INFO, "service.access")
    client.get("/healthz", headers={"x-request-id": "abc"})
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    line = json.loads(JsonFormatter().format(record))
    assert line["request_id"] == "abc"
    assert (line["method"], line["route"], line["status"]) == ("GET", "/healthz", 200)
    assert line["duration_seconds"] >= 0
    assert ConsoleFormatter().format(record).endswith("[abc]")


FORGED = "2026-11-28 22:00:00,000 INFO    PATCH /v1/quarantine/{item_id} 200 3.0 ms"


@pytest.mark.parametrize("end", ["\n", "\r", "\x1b[2K", "\x85", "\u2028"])
def test_no_text_of_a_callers_is_a_line_of_its_own(end):
    record = logging.LogRecord("nicegui", logging.WARNING, "path", 1, "%s not found", ("/x" + end + FORGED,), None)
    line = ConsoleFormatter().format(record)
    assert line.isprintable()
    assert line.endswith(f"{FORGED} not found")


def test_a_traceback_is_on_lines_of_its_own_that_look_like_no_others():
    try:
        raise ValueError("x\n" + FORGED + "\x1b[2K")
    except ValueError:
        record = logging.LogRecord("service", logging.ERROR, "path", 1, "failed", (), sys.exc_info())
    record.request_id = "abc"
    first, *rest = ConsoleFormatter().format(record).split("\n")
    assert first.endswith("failed [abc]")
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == f"  {FORGED}\\x1b[2K"
    assert all(line.startswith("  ") for line in rest)


def test_requests_without_error_may_be_sampled_and_others_may_not(make_client, caplog):
    caplog.set_level(logging.INFO, "service.access")
    client = make_client(access_log_share=0)
    client.get("/healthz")
    client.get("/nothing")
    assert [record.status for record in caplog.records if record.name == "service.access"] == [404]


def test_a_flood_of_refusals_has_one_line_a_second(make_client, caplog):
    caplog.set_level(logging.INFO, "service.access")
    client = make_client()
    client.app.state.runtime.draining = True
    for _ in range(20):
        assert client.get("/readyz").status_code == 503
    lines = [record for record in caplog.records if record.name == "service.access"]
    assert 1 <= len(lines) < 20
    assert lines[0].status == 503


def test_a_logged_failure_is_one_line_of_json():
    try:
        raise ValueError("planted")
    except ValueError:
        record = logging.LogRecord("name", logging.ERROR, "path", 1, "failed %d", (1,), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("error", "name", "failed 1")
    assert line["exception"].endswith("ValueError: planted")


UNIMPORTABLE = """
import sys
unwanted = "detectors.evaluation torchattacks torchvision sklearn tensorboard torch.utils.tensorboard".split()
unwanted += "detectors.export onnx onnxscript onnxruntime grpc opentelemetry.sdk opentelemetry.exporter".split()
unwanted += ["detectors.comparison", "pytorch_metric_learning"]
for name in unwanted:
    sys.modules[name] = None
import service.cli, service.server
from tests.service.conftest import ready_client
from service.settings import load_settings
bundle, image = sys.argv[1:]
with ready_client(load_settings(bundle=bundle, workers=1)) as client:
    response = client.post("/v1/predict", content=open(image, "rb").read(), headers={"content-type": "image/png"})
    assert response.status_code == 200, response.text
"""


def test_the_server_needs_nothing_of_evaluation_or_training(digits_bundle, digit_files, tmp_path):
    image = tmp_path / "digit.png"
    image.write_bytes(digit_files[0])
    command = [sys.executable, "-c", UNIMPORTABLE, str(digits_bundle), str(image)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_command_begins_before_anything_large_is_imported():
    """`lgm serve` has its workers' imports run beside its own: they must not wait for these."""
    code = (
        "import sys, service.command; print([name for name in ('torch', 'fastapi', 'numpy') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout.strip() == "[]"
