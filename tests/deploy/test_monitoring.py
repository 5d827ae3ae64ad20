"""Rules, dashboard and compose file fit the service, each other and the runbook."""

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from detectors import SHIPPED_BUNDLE
from detectors.manifest import load_manifest
from service.metrics import Metrics
from tests.deploy.promql import series_of

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
GROUPS = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "record" in rule}
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "lgm-guard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
COMPOSE = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
FOREIGN = {"up", "ALERTS"}
FROM_THE_GPU_EXPORTER = "DCGM_"


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def exported() -> Iterator[str]:
    metrics = Metrics()
    manifest = load_manifest(SHIPPED_BUNDLE)
    metrics.models_active([(manifest.name, manifest.version)])
    metrics.calibrated([manifest])
    metrics.default_model(false_alarm_rate=manifest.false_alarm_rate, detectors=manifest.detectors)
    metrics.request_answered("route", 200, 1.0)
    metrics.rejected.labels("reason").inc()
    for family in metrics.registry.collect():
        yield family.name + ("_total" if family.type == "counter" else "")
        yield from (sample.name for sample in family.samples)


def expressions() -> dict[str, str]:
    panels = {panel["title"]: target["expr"] for panel in PANELS for target in panel["targets"]}
    return {**RECORDED, **{name: rule["expr"] for name, rule in ALERTS.items()}, **panels}


@pytest.mark.parametrize(("where", "expression"), expressions().items())
def test_every_series_that_is_named_is_exported(where, expression):
    named = {name for name in series_of(expression) if not name.startswith(FROM_THE_GPU_EXPORTER)}
    assert named <= {*exported(), *RECORDED, *FOREIGN}


def test_the_names_in_an_expression_are_found():
    expression = 'sum by (a, b) (rate(one_total{x="y{z}"}[5m])) / on (a) group_left (c) lgm:two:ratio1h > 3 unless up'
    assert series_of(expression) == {"one_total", "lgm:two:ratio1h", "up"}


def test_promtool_finds_no_fault():
    for arguments in (("check", "config", DEPLOY / "prometheus" / "prometheus.yml"), ("check", "rules", RULES)):
        found = promtool(*arguments)
        assert found.returncode == 0, found.stdout + found.stderr


def test_every_alert_fires_and_ends_in_promtool_s_test():
    found = promtool("test", "rules", DEPLOY / "prometheus" / "rules_test.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    tests = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    seen: dict[tuple[str, str], list[bool]] = {}
    for test in tests:
        for asked in test.get("alert_rule_test", ()):
            seen.setdefault((asked["alertname"], test["name"]), []).append(bool(asked["exp_alerts"]))
        for asked in test["promql_expr_test"]:
            for name in re.findall(r'alertname="(\w+)"', asked["expr"]):
                seen.setdefault((name, test["name"]), []).append(bool(asked["exp_samples"]))
    assert {name for name, _ in seen} == set(ALERTS)
    assert all(fired == [False, True, False] for fired in seen.values())


def test_promtool_s_test_would_miss_each_alert(tmp_path):
    kept = [{**group, "rules": [rule for rule in group["rules"] if "alert" not in rule]} for group in GROUPS]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": kept}))
    (tmp_path / "rules_test.yml").write_bytes((DEPLOY / "prometheus" / "rules_test.yml").read_bytes())
    found = promtool("test", "rules", tmp_path / "rules_test.yml")
    assert found.returncode == 1
    assert {name for name in ALERTS if name in found.stdout + found.stderr} == set(ALERTS)


@pytest.mark.parametrize(("name", "alert"), ALERTS.items())
def test_every_alert_says_what_to_do(name, alert):
    assert {"summary", "description", "runbook_url"} == set(alert["annotations"])
    assert alert["labels"]["severity"] in {"page", "ticket", "info"}
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^### (\w+)$", (DEPLOY.parent / path).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings
    assert sorted(headings) == sorted(ALERTS)


def build(folder: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location("build", DEPLOY / folder / "build.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_dashboard_is_what_its_code_says():
    assert build("grafana").dashboard() == DASHBOARD
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert titles == ["Detection", "Service", "Quarantine", "Device (DCGM exporter)"]
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["datasources"][0]["uid"]}


def test_the_operator_gets_the_same_rules():
    rule = build("prometheus")
    text = rule.OBJECT.read_text(encoding="utf-8")
    assert text == rule.prometheus_rule()
    assert yaml.safe_load(text)["spec"] == {"groups": GROUPS}


@pytest.mark.parametrize("title", ["Kept, by state of review", "Bytes kept"])
def test_what_replicas_share_is_counted_once(title, tmp_path):
    (panel,) = [panel for panel in PANELS if panel["title"] == title]
    expression = panel["targets"][0]["expr"].replace("$instance", ".+")
    (name,) = series_of(expression)
    series = [f'{name}{{job="lgm-guard", instance="{instance}", state="new"}}' for instance in ("one", "two")]
    labels = '{state="new"}' if "state" in expression else "{}"
    asked = {"expr": expression, "eval_time": "1m", "exp_samples": [{"labels": labels, "value": 7}]}
    test = {"input_series": [{"series": one, "values": "7x9"} for one in series], "promql_expr_test": [asked]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"tests": [{"interval": "15s", **test}]}))
    found = promtool("test", "rules", tmp_path / "test.yml")
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_gpu_s_memory_is_in_dcgm_s_mebibytes():
    (panel,) = [panel for panel in PANELS if "DCGM_FI_DEV_FB_USED" in panel["targets"][0]["expr"]]
    assert panel["fieldConfig"]["defaults"]["unit"] == "mbytes"  # 2^20 bytes to Grafana; decmbytes are 10^6


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(("name", "service"), COMPOSE.items())
def test_containers_have_no_password_in_the_open_and_little_power(name: str, service: dict[str, Any]):
    for variable, value in service.get("environment", {}).items():
        if "PASSWORD" in variable or "PASSWORD" in str(value):
            assert re.search(r"\$\{\w+_PASSWORD:\?[^}]+\}", value)
            assert not re.search(r"://[^:/]+:[^$@]+@", value)
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service.get("user", "10001") not in ("root", "0", "0:0")  # the service's own image names its user
    assert "healthcheck" in service or name == "lgm-guard"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for mounted in service.get("volumes", ()):
        source, *_ = mounted.split(":")
        if source.startswith("."):
            assert mounted.endswith(":ro")
            assert (DEPLOY.parent / source).exists()
