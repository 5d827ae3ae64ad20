"""What the READMEs show works as it is written there, against the shipped bundle."""

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from model.config import parse_config
from tests.server import TIMEOUT, Server

REPOSITORY = Path(__file__).parents[2]
READMES = ["README.md", "model/README.md", "detectors/README.md", "service/README.md"]


def blocks(readme: str, language: str) -> list[str]:
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(command: str, url: str) -> dict[str, object]:
    command = command.replace("http://127.0.0.1:8000", url)
    finished = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    answer: dict[str, object] = json.loads(finished.stdout)
    return answer


@pytest.mark.parametrize("code", [block for readme in READMES for block in blocks(readme, "python")])
def test_python_runs(code: str, shipped_server: Server) -> None:
    address = shipped_server.url.removeprefix("http://")
    code = code.replace("127.0.0.1:8000", address).replace("127.0.0.1:8001", shipped_server.grpc_address)
    exec(compile(code, "README", "exec"), {"__name__": "readme"})


def test_curl_gives_the_answers_that_are_shown(url: str) -> None:
    commands = [block for block in blocks("README.md", "sh") if block.startswith("curl")]
    answers = [json.loads(block) for block in blocks("README.md", "json")]
    assert len(commands) == len(answers) == 2
    for command, shown in zip(commands, answers, strict=True):
        found = run(command, url)
        assert found["model"] == shown["model"]
        assert_alike(found["predictions"], shown["predictions"])


def assert_alike(found: object, shown: object) -> None:
    """Equal, numbers to the last digits that another processor may change."""
    match found, shown:
        case dict(), dict():
            assert found.keys() == shown.keys()
            for key, value in found.items():
                assert_alike(value, shown[key])
        case list(), list():
            for one, other in zip(found, shown, strict=True):
                assert_alike(one, other)
        case float(), float():
            assert found == pytest.approx(shown, rel=2e-3, abs=1e-6)
        case _:
            assert found == shown


def test_the_services_commands_work(url: str) -> None:
    commands = [block for block in blocks("service/README.md", "bash") if "/v1/predict" in block]
    assert len(commands) == 3
    for command in commands:
        predictions = run(command, url)["predictions"]
        assert isinstance(predictions, list)
        assert predictions[0]["label"] == "7"


def test_the_monitors_command_says_how_it_is(url: str) -> None:
    (command,) = [block for block in blocks("service/README.md", "bash") if "/v1/monitor" in block]
    command = command.replace("http://127.0.0.1:8000", url)
    said = subprocess.check_output(["bash", "-c", command], cwd=REPOSITORY, text=True, timeout=TIMEOUT)
    assert re.search("of [0-9,]+ images were flagged in the last hour|No images came|unlike the calibration", said)


def test_the_protocols_commands_work(url: str) -> None:
    commands = [block for block in blocks("service/README.md", "bash") if "/v2/models" in block]
    assert len(commands) == 2
    answers = [run(command, url) for command in commands]
    for answer in answers:
        assert answer["model_name"] == "mnist"
        assert [output["data"] for output in answer["outputs"] if output["name"] == "flagged"] == [[True]]
    assert [len(answer["outputs"]) for answer in answers] == [3, 7]


def test_the_configuration_shown_is_one() -> None:
    (script,) = [block for block in blocks("README.md", "sh") if "cat > flowers.toml" in block]
    text = script.split("<<'END'\n")[1].split("END\n")[0]
    assert parse_config(tomllib.loads(text)).name == "flowers"
