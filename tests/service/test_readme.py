"""The tables of service/README.md say what is so."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from detectors import SHIPPED_BUNDLE
from detectors.manifest import load_manifest
from service import errors
from service.cli import app
from service.client import Retries
from service.client.retries import UNTOLD_ATTEMPTS
from service.key_file import read_keys
from service.metrics import Metrics
from service.problems import STATUSES
from service.settings import Settings
from tests.service.monitoring.simulated import Source

README = (Path(errors.__file__).parent / "README.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def told_default(name: str) -> str:
    default = Settings.model_fields[name].default
    special = {
        "bundle": "the shipped one",
        "workers": "the container's",
        "threads": "the container's",
        "state_folder": "the user's",
    }
    return special.get(name, "none" if default is None else f"`{default}`")


def test_the_settings_are_all_there_with_their_defaults():
    expected = [[f"`{name}`", told_default(name), field.description] for name, field in Settings.model_fields.items()]
    assert rows("Settings") == expected


def test_the_metrics_are_all_there_with_their_labels():
    metrics = Metrics()
    metrics.models_active([("name", "version")])
    metrics.calibrated([load_manifest(SHIPPED_BUNDLE)])
    metrics.class_images.observe(("label",), Source.calibrated([9]).batch(np.zeros(1, np.int64)))
    metrics.default_model(false_alarm_rate=0.01, detectors=["likelihood"])
    metrics.request_answered("route", 200, 1.0)
    metrics.rejected.labels("reason").inc()
    found = {}
    for family in metrics.registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    told = {series.strip("`"): set(re.findall(r"`(\w+)`", labels)) for series, labels, _ in rows("Metrics")}
    assert told == found


@pytest.mark.parametrize(("error", "status"), STATUSES.items())
def test_every_problem_is_there_with_its_status(error, status):
    told = {(int(row[0]), code) for row in rows("Errors") for code in re.findall("`([a-z-]+)`", row[1])}
    assert (status, error.code) in told


def test_the_client_s_retries_are_what_is_said():
    assert f"that no `Retry-After` bade come again are {UNTOLD_ATTEMPTS} at most" in README
    (shown,) = re.findall(r"retries=(Retries\(.*?\))", README)
    assert eval(shown) == Retries(max_attempts=20)


def test_the_commands_for_keys_do_what_is_said(tmp_path):
    path = tmp_path / "keys.toml"
    make, show, revoke = re.findall(r"^    lgm (keys .*?)(?: +#.*)?$", README, re.MULTILINE)
    assert run(make, path).startswith("lgm_")
    (key,) = read_keys(path).keys
    assert key.id in run(show, path)
    run(revoke.replace("ci-3fa29c", key.id), path)
    assert read_keys(path).keys[0].revoked


def run(command: str, path: Path) -> str:
    result = CliRunner().invoke(app, command.replace("keys.toml", str(path)).split())
    assert result.exit_code == 0, result.output
    return result.stdout
