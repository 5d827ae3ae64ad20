"""lgm keys: make, list and revoke the API keys of a file."""

import re
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from service.errors import KeyFileError
from service.key_file import append_key, append_revocation, read_keys
from service.keys import Key, KeyRing, Role, RoleName, digest_of, make_key

app = typer.Typer(help="API keys: make, list, revoke.", no_args_is_help=True, rich_markup_mode=None)

KeysFile = Annotated[
    Path, typer.Option("--file", envvar="LGM_API_KEYS", help="The file of keys; that of the setting api_keys.")
]
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,47}")  # after a - it would be an option of lgm keys revoke


@app.command()
def new(
    file: KeysFile,
    role: Annotated[RoleName, typer.Option(help="What its holder may do; each includes the one before.")],
    name: Annotated[
        str, typer.Option(help="Whose key it is: 1 to 48 of A-Z a-z 0-9 . _ -, first no -; may be logged.")
    ],
    expires: Annotated[str | None, typer.Option(help="How long it is valid: 12h, 90d, 4w; else forever.")] = None,
) -> None:
    """Make a key and print it, this once; the file, which is made if need be, gets its hash."""
    if file.exists():
        read_keys(file)  # to a broken file nothing is added
    text, created = make_key(), datetime.now(UTC)
    key = Key(
        id=f"{_checked_name(name)}-{secrets.token_hex(3)}",
        role=Role[role.upper()],
        digest=digest_of(text.encode()),
        created=created,
        expires=None if expires is None else created + _lifetime(expires),
        revoked=False,
    )
    append_key(file, key)
    typer.echo(f"{key.id}: shown this once, kept nowhere", err=True)
    typer.echo(text)


@app.command("list")
def list_keys(file: KeysFile) -> None:
    """Show who holds keys, in which role, and which are valid; never the keys."""
    table = Table("id", "role", "created", "expires", "state", box=None)
    for key in read_keys(file).keys:
        expires = "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}Z"
        table.add_row(key.id, key.role.label, f"{key.created:%Y-%m-%d}", expires, _state(key))
    Console(width=None if Console().is_terminal else 120).print(table)


@app.command()
def revoke(
    file: KeysFile, key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as listed.")]
) -> None:
    """Make a key invalid; a running service follows within a second."""
    key = _find(read_keys(file), key_id)
    if not key.revoked:
        append_revocation(file, key.id)
    typer.echo(f"{key.id} is revoked")


def _find(ring: KeyRing, key_id: str) -> Key:
    for key in ring.keys:
        if key.id == key_id:
            return key
    raise KeyFileError(f"no key has the id {key_id!r}; `lgm keys list` shows all")


def _state(key: Key) -> str:
    if key.revoked:
        return "revoked"
    return "valid" if key.valid_at(datetime.now(UTC).timestamp()) else "expired"


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise KeyFileError(f"--name: 1 to 48 of A-Z a-z 0-9 . _ - are taken, first no -, got {name!r}")
    return name


def _lifetime(text: str) -> timedelta:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdecimal() and len(number) <= 4 and int(number) > 0 and unit in UNITS):
        raise KeyFileError(f"--expires: a number of 1 to 9999 and h, d or w are taken, as 90d, got {text!r}")
    return int(number) * UNITS[unit]
