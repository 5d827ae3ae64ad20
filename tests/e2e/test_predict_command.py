"""lgm predict as service/README.md shows it, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.server import TIMEOUT

REPOSITORY = Path(__file__).parents[2]


def test_it_works_as_shown(url: str) -> None:
    text = (REPOSITORY / "service" / "README.md").read_text(encoding="utf-8")
    (command,) = [
        block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if block.startswith("lgm predict")
    ]
    finished = subprocess.run(
        ["bash", "-c", command.replace("http://127.0.0.1:8000", url)],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    boot, seven = [line for line in finished.stdout.splitlines() if "tests/samples/" in line]
    assert "yes" in boot
    assert "yes" not in seven
    assert finished.stderr.endswith("2 images, 1 flagged, 0 could not be judged\n")
