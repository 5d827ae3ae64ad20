"""The lgm command: what the caller does wrong is one line and exit status 2."""

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from model.errors import DataError
from service import cli
from service.cli import COMMANDS, READER_GONE, Commands, app
from service.settings import Settings, option
from tests.bundles import changed, with_other_scores
from tests.server import TIMEOUT, Server

SAMPLES = Path(__file__).parents[1] / "samples"
runner = CliRunner()


@pytest.fixture(autouse=True)
def _process_settings_restored():
    """`lgm serve` sets the log and the threads of its process, which here is the tests'."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    level, handlers = root.level, root.handlers[:]
    yield
    torch.set_num_threads(threads)
    root.setLevel(level)
    root.handlers[:] = handlers


def check_one_line(result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_help_shows_every_setting_with_default_and_variable():
    text = " ".join(runner.invoke(app, ["serve", "--help"], terminal_width=200).stdout.split())
    for name, field in Settings.model_fields.items():
        assert option(name) in text
        assert f"LGM_{name.upper()}" in text
        assert field.description in text
    assert "[default: 8000]" in text
    assert "flag|withhold" in text


def test_the_help_names_every_command_with_a_whole_line():
    lines = [" ".join(line.split()) for line in runner.invoke(app, ["--help"]).stdout.splitlines()]
    assert [line for name, command in COMMANDS.items() if (line := f"{name} {command.help}") not in lines] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_of_itself(name):
    answer = runner.invoke(app, [name, "--help"])
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith(f"Usage: lgm {name}")


def test_an_unknown_command_is_named():
    answer = runner.invoke(app, ["trian"])
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "No such command 'trian'" in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "--version",
        "--help",
        "serve --help",
        "predict x.png",
        "keys list --file none",
        "quarantine --help",
        "capacity --help",
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments, tmp_path):
    code = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'lgm'; from service.command import main; main()"
    command = [sys.executable, "-c", code, *arguments.split()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=tmp_path)
    assert "Traceback" not in finished.stderr
    assert finished.stdout or finished.stderr.startswith("error: ")


def test_version():
    assert runner.invoke(app, ["--version"]).stdout.strip().count(".") == 2


def test_an_option_is_checked_as_a_setting(digits_bundle):
    result = runner.invoke(app, ["serve", "--bundle", str(digits_bundle), "--port", "70000", "--policy", "x"])
    check_one_line(result, "port (--port, LGM_PORT)", "65535, got '70000'", "policy (--policy, LGM_POLICY)")


def test_a_variable_is_checked_as_a_setting():
    check_one_line(runner.invoke(app, ["serve"], env={"LGM_THREADS": "many"}), "LGM_THREADS", "got 'many'")


def test_a_variable_that_is_no_setting_is_told_at_the_start(tmp_path):
    command = ["serve", "--bundle", str(tmp_path / "nothing")]
    told = runner.invoke(app, command, env={"LGM_MAX_BATCH_SISE": "3"}).stderr
    assert "WARNING the variable LGM_MAX_BATCH_SISE is no setting, but LGM_MAX_BATCH_SIZE is\n" in told


def test_an_unknown_key_of_the_file(tmp_path):
    path = tmp_path / "lgm.toml"
    path.write_text("prot = 1")
    check_one_line(runner.invoke(app, ["serve", "--config", str(path)]), "unknown setting 'prot'")


def test_a_bundle_that_is_not_there(tmp_path):
    result = runner.invoke(app, ["serve", "--port", "0", "--bundle", str(tmp_path / "nothing")])
    check_one_line(result, "nothing/bundle.json cannot be read")


@pytest.mark.parametrize("name", ["models", "reports"])
def test_a_folder_that_is_none(digits_bundle, tmp_path, name):
    serve = ["serve", "--bundle", str(digits_bundle), "--port", "0", option(name)]
    check_one_line(runner.invoke(app, [*serve, str(tmp_path / "a")]), f"{name}: {tmp_path}/a cannot be read: No such")
    check_one_line(runner.invoke(app, [*serve, str(digits_bundle / "bundle.json")]), name, "Not a directory")


def test_a_folder_of_the_page_alone_that_is_none(tmp_path):
    result = runner.invoke(app, ["dashboard", "--port", "0", "--reports", str(tmp_path / "a")])
    check_one_line(result, f"reports: {tmp_path}/a cannot be read: No such")


def test_a_changed_manifest_is_refused_by_name(digits_bundle, tmp_path):
    bundle = changed(digits_bundle, tmp_path / "broken", "bundle.json")
    check_one_line(runner.invoke(app, ["serve", "--port", "0", "--bundle", str(bundle)]), "broken/bundle.json")


def check_ended(bundle, *parts: str) -> None:
    """What only a worker finds out comes after the server has begun to listen: the last line says it."""
    server = Server("--bundle", str(bundle), "--workers", "1")
    assert server.process.wait(TIMEOUT) == 2
    server.stop()
    last = str(server.lines[-1]["message"])
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


@pytest.mark.parametrize("name", ["network.safetensors", "detectors.safetensors"])
def test_a_bundle_with_one_byte_changed_is_refused_by_name(digits_bundle, tmp_path, name):
    check_ended(changed(digits_bundle, tmp_path / "broken", name), f"broken/{name} was changed")


def test_a_bundle_that_does_not_reproduce_its_scores(digits_bundle, tmp_path):
    check_ended(with_other_scores(digits_bundle, tmp_path / "other"), "does not reproduce its reference scores")


def test_a_device_that_is_not_there(digits_bundle):
    result = runner.invoke(app, ["serve", "--port", "0", "--bundle", str(digits_bundle), "--device", "cuda:63"])
    check_one_line(result, "device: cuda:63 is not available here")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken(digits_bundle, host):
    with socket.create_server((host, 0)) as taken:
        port = str(taken.getsockname()[1])
        result = runner.invoke(app, ["serve", "--bundle", str(digits_bundle), "--host", host, "--port", port])
    check_one_line(result, f"cannot listen on {host}:{port}: Address already in use")


def test_a_host_that_does_not_exist(digits_bundle):
    result = runner.invoke(app, ["serve", "--bundle", str(digits_bundle), "--host", "256.1.1.1"])
    check_one_line(result, "cannot listen on 256.1.1.1:8000")


def test_a_flag_is_one(digits_bundle, tmp_path):
    keys = ["--api-keys", str(tmp_path / "nothing.toml")]
    result = runner.invoke(app, ["serve", "--bundle", str(digits_bundle), "--allow-anonymous", *keys])
    check_one_line(result, "api_keys and allow_anonymous exclude each other")
    check_one_line(runner.invoke(app, ["serve", *keys], env={"LGM_ALLOW_ANONYMOUS": "true"}), "exclude each other")


def test_a_host_of_other_machines_without_keys(digits_bundle):
    result = runner.invoke(app, ["serve", "--bundle", str(digits_bundle), "--host", "0.0.0.0", "--port", "0"])
    check_one_line(result, "host: 0.0.0.0 is open to other machines", "--allow-anonymous")


def test_a_certificate_that_is_none(digits_bundle, tmp_path):
    (tmp_path / "c.pem").write_text("no certificate")
    tls = ["--tls-certificate", str(tmp_path / "c.pem"), "--tls-key"]
    serve = ["serve", "--bundle", str(digits_bundle), "--port", "0", *tls]
    check_one_line(runner.invoke(app, [*serve, str(tmp_path / "c.pem")]), "c.pem are no chain and its key in PEM")
    check_one_line(runner.invoke(app, [*serve, str(tmp_path / "nothing.pem")]), "nothing.pem cannot be read")


def test_more_connections_than_files_may_be_open(digits_bundle):
    lgm = Path(sys.executable).with_name("lgm")
    command = f"ulimit -n 500; exec {lgm} serve --port 0 --threads 1 --bundle {digits_bundle}"
    finished = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 2
    assert "error: max_connections: needs 3128 open files; this process may have 500" in finished.stderr


def test_errors_of_every_command_are_one_line():
    check_one_line(runner.invoke(app, ["train", "/does/not/exist.toml"]), "/does/not/exist.toml")
    check_one_line(runner.invoke(app, ["screen", "/does/not/exist", "x.png"]), "/does/not/exist")


@pytest.mark.parametrize("command", ["fit run", "recalibrate bundle --from-quarantine state"])
def test_a_seed_beyond_the_limit_is_refused_before_anything_is_read(command):
    result = runner.invoke(app, [*command.split(), "--output", "none", "--seed", str(2**32)])
    assert result.exit_code == 2, result.output
    assert "'--seed'" in result.stderr
    assert "4294967295" in result.stderr


def test_a_message_of_several_lines_becomes_one():
    command = cli.typer.Typer(cls=Commands)

    @command.callback()
    def main() -> None:
        """So that it is a group."""

    @command.command()
    def fail() -> None:
        raise DataError("first\n  second")

    result = runner.invoke(command, ["fail"])
    assert (result.exit_code, result.stderr) == (2, "error: first second\n")


WRITING = [  # of each room, by each way of writing
    "--version",
    "train --list-losses",
    "describe {bundle} --json",
    "evaluate {bundle} --data digits --limit 3 --output {folder}/evaluated",
    "keys list --help",
]


def run_writing(command, stdout, bundle, folder):
    """Status, and of standard error what is neither progress nor what was done."""
    named = command.format(bundle=bundle, folder=folder, samples=SAMPLES)
    lgm = [Path(sys.executable).with_name("lgm"), *named.split()]
    finished = subprocess.run(lgm, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False)
    return finished.returncode, [line for line in finished.stderr.splitlines() if is_trouble(line)]


def is_trouble(line: str) -> bool:
    return any(word in line for word in ("rror", "Traceback", "xception"))


@pytest.mark.parametrize("command", WRITING)
def test_a_standard_output_that_is_full_is_one_line_of_any_command(command, digits_bundle, tmp_path):
    with open("/dev/full", "wb") as full:
        told = run_writing(command, full, digits_bundle, tmp_path)
    assert told == (2, ["error: standard output cannot be written: No space left on device"])


@pytest.mark.parametrize("command", ["--version", "screen {bundle} {samples}"])
def test_a_pipe_that_nobody_reads_ends_any_command_quietly(command, digits_bundle, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:
        told = run_writing(command, closed, digits_bundle, tmp_path)
    assert told == (READER_GONE, [])


def test_what_is_on_by_default_can_be_turned_off():
    assert "--no-dashboard" in CliRunner().invoke(cli.app, ["serve", "--help"]).output
