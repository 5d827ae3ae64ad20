"""From traffic over its review to a new version, by the command."""

import time

import pytest
from typer.testing import CliRunner

from detectors import load_bundle
from detectors.manifest import load_manifest
from service.cli import app
from service.quarantine import State
from service.settings import load_settings
from tests.service.conftest import png, ready_client
from tests.service.quarantine.conftest import made_item, noise
from tests.service.quarantine.test_routes import PNG, URL, outcome

NUM_DIGITS = 120


@pytest.fixture(scope="module")
def state_folder(settings, digits_images, abnormal_file, tmp_path_factory):
    """Of a service that has judged ordinary and abnormal images and kept them all; the flagged ones are reviewed."""
    folder = tmp_path_factory.mktemp("state")
    files = [png(image) for image in digits_images[:NUM_DIGITS]] + [abnormal_file]
    with ready_client(
        load_settings(**{**settings.model_dump(), "state_folder": folder, "quarantine": "all"})
    ) as client:
        for file in files:
            client.post("/v1/predict", content=file, headers=PNG).raise_for_status()
        while outcome(client, "kept") < len(files):
            time.sleep(0.01)
        newest, *others = client.get(URL, params={"flagged": True, "limit": 200}).json()["items"]
        review(client, newest, State.CONFIRMED_ADVERSARIAL)
        for item in others:
            review(client, item, State.FALSE_POSITIVE)
    return folder


def review(client, item: dict[str, object], state: State) -> None:
    url = f"{URL}/{item['id']}"
    client.patch(url, json={"state": state}, headers={"if-match": f'"{item["revision"]}"'}).raise_for_status()


def run(bundle, state_folder, output, *options: str, answer: str = ""):
    command = ["recalibrate", str(bundle), "--from-quarantine", str(state_folder), "--output", str(output), *options]
    return CliRunner().invoke(app, command, input=answer)


def test_nothing_is_written_before_it_is_shown_and_confirmed(digits_bundle, state_folder, tmp_path):
    result = run(digits_bundle, state_folder, tmp_path / "new", answer="n\n")
    assert result.exit_code == 1
    assert not (tmp_path / "new").exists()
    assert "1 of the blind sample were found adversarial or abnormal and are left out" in result.output
    (ordinary,) = [line.split() for line in result.output.splitlines() if "ordinary, of" in line]
    assert ordinary[-3] == str(NUM_DIGITS)
    assert "Write this as a new version" in result.output


def test_the_new_version_is_the_old_one_but_for_its_calibration(
    digits_bundle, digits_screener, state_folder, tmp_path
):
    result = run(digits_bundle, state_folder, tmp_path / "new", "--yes")
    assert result.exit_code == 0, result.output
    before, after = load_manifest(digits_bundle), load_manifest(tmp_path / "new")
    screener = load_bundle(tmp_path / "new")
    screener.self_test()
    images = noise(1)[None]
    assert (after.name, after.labels, after.fused) == (before.name, before.labels, before.fused)
    assert after.version != before.version
    assert after.measured["recalibrated_from"] == before.version
    assert "false_alarms" not in after.measured
    for label, size in before.calibration_sizes.items():
        assert size <= after.calibration_sizes[label] <= size + size // 8
    assert sum(after.calibration_sizes.values()) > sum(before.calibration_sizes.values())
    suspicion = [float(one.suspicion(load(images))) for one in (digits_screener, screener)]
    assert suspicion[0] == suspicion[1]
    card = (tmp_path / "new" / "README.md").read_text()
    assert before.version in card
    assert (digits_bundle / "README.md").read_text() in card


def load(images):
    import torch

    return torch.from_numpy(images)


def test_the_same_again_is_the_same(digits_bundle, state_folder, tmp_path):
    for name in ("one", "two"):
        assert run(digits_bundle, state_folder, tmp_path / name, "--yes").exit_code == 0
    one, two = (load_manifest(tmp_path / name) for name in ("one", "two"))
    assert (one.calibration_sizes, one.files["detectors.safetensors"]) == (
        two.calibration_sizes,
        two.files["detectors.safetensors"],
    )


REFUSED = {
    "undecided": (["--since", "2000-01-01"], "are not decided upon"),
    "of long ago": (["--since", "2100-01-01"], "0 images of the blind sample can be added, at least 100"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_must_not_calibrate_is_refused(case, digits_bundle, digits_screener, database, store, tmp_path):
    from service.quarantine.files import write_image
    from service.quarantine.keeping import Kept, keep

    options, said = REFUSED[case]
    members = {"model_version": digits_screener.version, "why": "sampled"}
    keep(database, store, [Kept(made_item(noise(1), **members), write_image(noise(1)))])
    where = ["--store", str(tmp_path / "files"), *options]
    result = run(digits_bundle, database._url.render_as_string(hide_password=False), tmp_path / "new", *where)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "new").exists()


def test_a_sample_that_somebody_chose_from_does_not_calibrate(
    digits_bundle, digits_screener, database, store, tmp_path
):
    from service.quarantine.files import write_image
    from service.quarantine.keeping import Kept, keep
    from service.quarantine.quarantine import Quarantine

    members = {"model_version": digits_screener.version, "why": "sampled", "flagged": False}
    items = [made_item(noise(seed), **members) for seed in range(3)]
    keep(database, store, [Kept(item, write_image(noise(seed))) for seed, item in enumerate(items)])
    quarantine = Quarantine(database, store)
    quarantine.delete(sorted(item.id for item in items)[1], who="somebody")
    where = ["--store", str(tmp_path / "files"), "--yes"]
    result = run(digits_bundle, database._url.render_as_string(hide_password=False), tmp_path / "new", *where)
    assert "1 images of the blind sample are left out" in result.output
    assert "1 images of the blind sample can be added, at least 100" in result.output
    suspected = made_item(noise(5), **{**members, "why": "flagged", "flagged": True})
    keep(database, store, [Kept(suspected, write_image(noise(5)))])
    quarantine.delete(suspected.id, who="somebody")
    result = run(digits_bundle, database._url.render_as_string(hide_password=False), tmp_path / "new", *where)
    assert "1 images of the blind sample are left out" in result.output


def test_a_folder_that_is_none_and_a_missing_store_are_refused(digits_bundle, tmp_path):
    result = run(digits_bundle, tmp_path / "nothing", tmp_path / "new")
    assert (result.exit_code, "is no state folder of a service" in result.output) == (2, True)
    result = run(digits_bundle, "postgresql://host/name", tmp_path / "new")
    assert (result.exit_code, "--store" in result.output) == (2, True)
    missing = f"sqlite:///{tmp_path / 'typo.sqlite'}"
    result = run(digits_bundle, missing, tmp_path / "new", "--store", str(tmp_path / "files"))
    assert (result.exit_code, "there is no file" in result.output) == (2, True)
    assert not any((tmp_path / name).exists() for name in ("nothing", "typo.sqlite", "new"))


@pytest.mark.parametrize("command", [["expire"], ["export", "OUT"]], ids=lambda command: command[0])
def test_nothing_is_made_where_no_service_has_been(command, tmp_path, monkeypatch):
    monkeypatch.setenv("LGM_STATE_FOLDER", str(tmp_path / "typo"))
    result = CliRunner().invoke(
        app, ["quarantine", *(str(tmp_path / "out") if it == "OUT" else it for it in command)]
    )
    assert (result.exit_code, "there is no file" in result.output) == (2, True)
    assert not list(tmp_path.iterdir())


def test_the_other_commands_do_what_they_say(state_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LGM_STATE_FOLDER", str(state_folder))
    runner = CliRunner()
    assert "is of version 0001" in runner.invoke(app, ["quarantine", "upgrade"]).output
    assert runner.invoke(app, ["quarantine", "expire"]).output.startswith("0 items expired")
    result = runner.invoke(app, ["quarantine", "export", str(tmp_path / "out"), "--state", "confirmed_adversarial"])
    assert result.output.startswith("1 items in")
    (line,) = (tmp_path / "out" / "items.jsonl").read_text().splitlines()
    assert '"state":"confirmed_adversarial"' in line
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o600}
    assert runner.invoke(app, ["quarantine", "export", str(tmp_path / "out")]).exit_code == 2
