"""lgm predict, in process, against a real service."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from detectors import Screener
from service.cli import READER_GONE, app
from tests.server import TIMEOUT
from tests.service.client.scripted import ScriptedServer, answer, answered, problem

runner = CliRunner()
FORMS = [pytest.param(form, id=name) for name, form in {"table": [], "json": ["--json"], "csv": ["--csv"]}.items()]


@pytest.fixture
def folder(tmp_path: Path, digit_files: list[bytes]) -> Path:
    (tmp_path / "in" / ".hidden").mkdir(parents=True)
    for row, file in enumerate(digit_files[:3]):
        (tmp_path / "in" / f"{row}.png").write_bytes(file)
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / ".hidden" / "x.png").touch()
    return tmp_path / "in"


def run(*arguments: object, input: bytes | None = None, **environment: str) -> Any:
    given = ["predict", *map(str, arguments)]
    return runner.invoke(app, given, input=input, env={"COLUMNS": "200", **environment})


def test_a_table_by_default(url: str, folder: Path) -> None:
    result = run(folder, "--url", url)
    assert result.exit_code == 0, result.output
    for row in range(3):
        assert str(folder / f"{row}.png") in result.stdout
    assert "hidden" not in result.stdout
    assert result.stderr == "3 images, 0 flagged, 0 could not be judged\n"


def test_json_has_all_evidence_a_line_an_image(url: str, folder: Path, digits_screener: Screener) -> None:
    result = run(folder, "--json", LGM_URL=url)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["image"] for row in rows] == [str(folder / f"{row}.png") for row in range(3)]
    assert all(set(row["evidence"]) == set(digits_screener.detectors) and row["error"] is None for row in rows)


def test_standard_input_is_an_image_among_others(url: str, folder: Path) -> None:
    result = run("-", folder / "0.png", "-", "--json", input=(folder / "1.png").read_bytes(), LGM_URL=url)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["image"] for row in rows] == ["-", str(folder / "0.png")]
    (alone,) = map(json.loads, run(folder / "1.png", "--json", LGM_URL=url).stdout.splitlines())
    assert rows[0]["log_likelihood"] == pytest.approx(alone["log_likelihood"])


def test_standard_input_that_gives_nothing_is_one_line(tmp_path: Path) -> None:
    result = run("-", input=b"")
    assert (result.exit_code, result.stderr) == (2, "error: -: standard input is empty; give it an image file\n")
    _, terminal = os.openpty()
    with open(tmp_path / "nothing", "w") as unreadable:
        for given, told in ((terminal, "is a terminal or closed"), (unreadable.fileno(), "cannot be read: Bad file")):
            status, said = in_a_process("-", stdin=given, stdout=subprocess.DEVNULL)
            assert status == 2
            assert said.startswith(f"error: -: standard input {told}")
            assert said.count("\n") == 1
    os.close(terminal)


def test_a_file_is_asked_about_once_by_whatever_spelling(url: str, folder: Path) -> None:
    result = run(folder, folder / ".." / "in", folder / "1.png", "--json", LGM_URL=url)
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [
        str(folder / f"{row}.png") for row in range(3)
    ]


def test_csv_and_a_status_of_one_where_an_image_failed(url: str, folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "[bold]missing.png"
    result = run(folder / "1.png", missing, "--csv", "--url", url)
    assert result.exit_code == 1
    first, second = csv.DictReader(io.StringIO(result.stdout))
    assert (first["image"], first["error"], first["flagged"]) == (str(folder / "1.png"), "", "False")
    assert (second["image"], second["label"]) == (str(missing), "")
    assert second["error"] == "cannot be read: No such file or directory"
    table = run(folder / "1.png", missing, "--url", url)
    assert table.exit_code == 1
    assert "[bold]missing.png" in table.stdout
    assert "error: cannot be read" in table.stdout


@pytest.mark.parametrize("form", FORMS)
def test_a_name_that_is_not_utf_8_is_written_as_escapes(url: str, folder: Path, form: list[str]) -> None:
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "0.png").read_bytes())
    (folder / os.fsdecode(b"bad\xff.png")).write_bytes(b"no image")
    result = run(folder, *form, "--url", url, COLUMNS="300")
    assert result.exit_code == 1, result.output
    shown = result.stdout.replace(r"\\", "\\")  # in JSON a backslash is two
    for name in (r"caf\xe9.png", r"bad\xff.png"):
        assert f"{folder / name}" in shown


def in_a_process(*arguments: object, stdout: int, stdin: int | None = None, **environment: str) -> tuple[int, str]:
    """Status and standard error of the command with this standard output."""
    command = [Path(sys.executable).with_name("lgm"), "predict", *map(str, arguments)]
    finished = subprocess.run(
        command,
        env={**os.environ, "COLUMNS": "200", **environment},
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return finished.returncode, finished.stderr


@pytest.mark.parametrize("form", FORMS)
def test_a_standard_output_that_is_full_is_one_line(url: str, folder: Path, form: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        told = in_a_process(folder, *form, "--url", url, stdout=full.fileno())
    assert told == (2, "error: standard output cannot be written: No space left on device\n")


@pytest.mark.parametrize("form", FORMS)
def test_a_pipe_that_nobody_reads_ends_it_as_it_ends_others(url: str, folder: Path, form: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        told = in_a_process(folder, *form, "--url", url, stdout=closed.fileno())
    assert told == (READER_GONE, "")


@pytest.mark.parametrize("form", [[], ["--csv"]], ids=["table", "csv"])
def test_an_encoding_that_lacks_a_character_is_named(url: str, folder: Path, form: list[str]) -> None:
    (folder / "0.png").rename(folder / "ü.png")
    told = in_a_process(folder, *form, "--url", url, stdout=subprocess.DEVNULL, PYTHONIOENCODING="ascii")
    reason = r"its encoding, ascii, lacks '\xfc'; PYTHONIOENCODING=utf-8 sets another"
    assert told == (2, f"error: standard output cannot be written: {reason}\n")


def test_flagged_and_withheld_images_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    body = answered()
    body["predictions"] = [
        {**body["predictions"][0], "label": None, "class_index": None, "probability": None, "flagged": True}
    ]
    with ScriptedServer(answer(200, body)) as server:
        result = run(tmp_path / "a.png", "--url", server.url, "--key", "secret")
    assert result.exit_code == 0
    assert "withheld" in result.stdout
    assert "1 images, 1 flagged" in result.stderr
    assert server.received[0].headers["authorization"] == "Bearer secret"


def test_more_files_than_one_request_takes(tmp_path: Path) -> None:
    for row in range(70):
        (tmp_path / f"{row:02}.png").touch()
    with ScriptedServer(answer(200, answered(64)), answer(200, answered(6))) as server:
        result = run(tmp_path, "--csv", "--url", server.url, LGM_API_KEY="from-environment")
    assert len(list(csv.DictReader(io.StringIO(result.stdout)))) == 70
    assert [received.headers["authorization"] for received in server.received] == ["Bearer from-environment"] * 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
        (["--url", "nowhere"], "'nowhere' is no URL"),
        (["--url", "http://bob:secret@host"], "the URL of host holds a name or password"),
        (["--url", "http://xn--"], "'http://xn--' is no URL"),
        (["--url", f"http://{'a' * 300}"], "is no URL"),
        ([""], "an empty path names no file"),
        (["--json", "--csv"], "choose either --json or --csv"),
        (["--timeout", "0"], "timeout_seconds must lie in"),
        (["--key", "two words"], "API key"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, options: list[str], told: str) -> None:
    result = run(folder, *options)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr
    assert result.stdout == ""


def test_a_refusal_is_one_line(folder: Path) -> None:
    with ScriptedServer(answer(401, problem(401, "unauthenticated"))) as server:
        result = run(folder, "--url", server.url)
    assert result.exit_code == 2
    assert result.stderr == "error: 401 unauthenticated: what is wrong\n"


def test_a_folder_without_images(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "holds no image files" in result.stderr
