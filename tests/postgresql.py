"""A private PostgreSQL: a cluster of its own that only a socket in its folder leads to."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

ACCOUNT = "postgres"  # it refuses to run as root


def find_programs() -> Path:
    """The folder of initdb and pg_ctl; without them the test is skipped, which .ci/run takes for a failure."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("PostgreSQL is not installed")
    return folders[-1]


class Cluster:
    """Made in a folder of its own; started and stopped as often as a test likes."""

    def __init__(self, folder: Path):
        self._programs, self._folder, self._data = find_programs(), folder, folder / "data"
        if os.geteuid() == 0:
            shutil.chown(folder, ACCOUNT)
        self._run("initdb", "--pgdata", str(self._data), "--username", "lgm", "--auth", "trust", "--no-sync")
        self._num_databases = 0

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._pg_ctl("start", "--options", options, "--log", str(self._folder / "log"))

    def stop(self) -> None:
        """At once, as if it were killed."""
        self._pg_ctl("stop", "--mode", "immediate")

    def new_database(self) -> str:
        """Its URL."""
        self._num_databases += 1
        name = f"quarantine{self._num_databases}"
        self._tell(f"CREATE DATABASE {name}")
        return f"postgresql://lgm@/{name}?host={self._folder}"

    def make_anew(self, address: str) -> None:
        """Empty, whoever is connected."""
        name = make_url(address).database
        self._tell(f"DROP DATABASE {name} WITH (FORCE)", f"CREATE DATABASE {name}")

    @contextmanager
    def read_only(self, address: str) -> Iterator[None]:
        """Meanwhile it is so for all who connect."""
        setting = f"ALTER DATABASE {make_url(address).database} SET default_transaction_read_only"
        self._tell(f"{setting} = on")
        try:
            yield
        finally:
            self._tell(f"{setting} = off")

    def _tell(self, *statements: str) -> None:
        commands = (part for statement in statements for part in ("--command", statement))
        self._run("psql", "--host", str(self._folder), "--username", "lgm", "--quiet", "postgres", *commands)

    def _pg_ctl(self, command: str, *options: str) -> None:
        self._run("pg_ctl", command, "--pgdata", str(self._data), "--wait", *options)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid", ACCOUNT, "--regid", ACCOUNT, "--clear-groups", *command]
        # Its server outlives the command and would hold a pipe open.
        subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
