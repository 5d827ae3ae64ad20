"""The database: SQLite in a file by default, PostgreSQL by URL; brought to the newest schema before its first use."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.errors import QuarantineUnavailableError, SettingsError

logger = logging.getLogger(__name__)

HEAD = "0001"  # the newest migration
MIGRATIONS = Path(__file__).parent / "migrations"
UPGRADING = 0x6C676D  # the advisory lock of those who bring the schema up to date
BUSY_SECONDS = 5
POSTGRESQL_ARGUMENTS = {
    "connect_timeout": 3,
    "options": "-c statement_timeout=10000 -c lock_timeout=5000",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
}
WRITES = "lgm_writes"


class Database:
    """Opened at its first use and again after any trouble, so that a service starts without it.

    must_exist: whoever only reads wants no empty file where there is none.
    Raises SettingsError for an address that can be none, or is none yet and must be.
    """

    def __init__(self, address: str, *, must_exist: bool = False):
        self._url = _checked(address)
        if must_exist and self._url.get_backend_name() == "sqlite" and not Path(str(self._url.database)).is_file():
            raise SettingsError(f"quarantine_database: there is no file {self._url.database}")
        self._engine = _engine_for(self._url)
        self._lock = Lock()
        self._current = False

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Raises QuarantineUnavailableError."""
        with self._reachable():
            self._bring_up_to_date()
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, the only one that writes where that is all the database can. Raises as reading does."""
        with self._reachable():
            self._bring_up_to_date()
            with self._engine.execution_options(**{WRITES: True}).begin() as connection:
                yield connection

    def upgrade(self) -> None:
        """Bring the schema up to date. Raises QuarantineUnavailableError."""
        with self._reachable():
            self._bring_up_to_date()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Every database words in its own way that it is read-only, full, damaged or without our tables."""
        try:
            yield
        except (DataError, IntegrityError):
            raise
        except (OperationalError, PoolTimeoutError) as error:
            raise self._unavailable(error) from None
        except DBAPIError as error:
            self._current = False  # it may have been made anew
            self._engine.dispose()  # who connected while it was read-only would find it so for ever
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> QuarantineUnavailableError:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        logger.warning("the quarantine's database %s fails: %s", self, reason)
        return QuarantineUnavailableError("the quarantine's database fails; the log says why")

    def _bring_up_to_date(self) -> None:
        if self._current:
            return
        with self._lock:
            if not self._current:
                if self.dialect == "sqlite":
                    _make_file(self._url)
                with self._engine.execution_options(**{WRITES: True}).begin() as connection:
                    _upgrade(connection)
                self._current = True


def _checked(address: str) -> URL:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "quarantine_database: not a URL as sqlite:///file or postgresql://user@host/name"
        ) from None
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise SettingsError(f"quarantine_database: {url.get_backend_name()} is not taken; sqlite and postgresql are")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise SettingsError("quarantine_database: SQLite needs a file, as sqlite:///file")
    if url.drivername == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    return url


def _engine_for(url: URL) -> Engine:
    try:
        return _sqlite_engine(url) if url.get_backend_name() == "sqlite" else _postgresql_engine(url)
    except NoSuchModuleError:
        raise SettingsError(f"quarantine_database: there is no driver {url.drivername}") from None
    except ImportError as error:
        raise SettingsError(f"quarantine_database: {error}; pip install 'lgm-guard[postgresql]'") from None


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
    event.listen(engine, "connect", partial(_configure_sqlite, Path(str(url.database)).parent))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _postgresql_engine(url: URL) -> Engine:
    return create_engine(url, connect_args=POSTGRESQL_ARGUMENTS, pool_pre_ping=True, pool_timeout=BUSY_SECONDS)


def _configure_sqlite(folder: Path, connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, not where the driver guesses
    with _one_at_a_time(folder):
        connection.execute("PRAGMA journal_mode=WAL").close()
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of all processes: whoever finds another changing the journal's mode is refused by SQLite without a wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that will write says so at once: one that asks for it late could be refused without a wait."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_file(url: URL) -> None:
    """SQLite's own would be open to every user, and so would what lies beside it, which takes its mode."""
    path = Path(str(url.database))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        logger.warning("the quarantine's database %s cannot be made: %s", path, error.strerror)
        raise QuarantineUnavailableError("the quarantine's database cannot be made; the log says why") from None


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADING})
    if _revision(connection) != HEAD:
        _run_migrations(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _run_migrations(connection: Connection) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command  # a third of a second, which a database that is up to date need not cost
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        logger.error("the quarantine's database is of another version than this service: %s", error)
        raise QuarantineUnavailableError("the quarantine's database is of a newer version") from None
    logger.info("the quarantine's database is of version %s now", HEAD)
