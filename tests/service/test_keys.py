"""Keys, their file and `lgm keys`."""

import hashlib
import logging
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from service.cli import app
from service.errors import KeyFileError
from service.file_watch import FileWatch
from service.key_file import MAX_FILE_BYTES, KeyFile, append_key, append_revocation, read_keys
from service.keys import Key, KeyRing, Role, digest_of, make_key, parse_keys
from tests.full_disk import files_of_at_most

runner = CliRunner()
ENTRY = '[[keys]]\nid = "{id}"\nrole = "predict"\nsha256 = "{sha256}"\ncreated = 2026-01-01T00:00:00Z\n'


def key_of(text: str, *, id: str = "ci-1", role: Role = Role.PREDICT, expires: datetime | None = None) -> Key:
    created = datetime(2026, 1, 1, tzinfo=UTC)
    return Key(id=id, role=role, digest=digest_of(text.encode()), created=created, expires=expires, revoked=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.toml"


@pytest.fixture
def key_file(path, monkeypatch):
    """A file with one key, that looks for changes whenever it is asked; and the key."""
    monkeypatch.setattr("service.key_file.FileWatch", lambda path: FileWatch(path, every_seconds=0))
    text = make_key()
    append_key(path, key_of(text))
    return KeyFile(path), text


def invoke(*arguments: str):
    return runner.invoke(app, ["keys", *arguments])


def new_key(path, *arguments: str) -> str:
    result = invoke("new", "--file", str(path), "--role", "predict", "--name", "ci", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_key_has_256_random_bits_and_a_prefix_that_scanners_can_find():
    assert re.fullmatch(r"lgm_[A-Za-z0-9_-]{43}", make_key())
    assert len({make_key() for _ in range(100)}) == 100


def test_it_is_kept_as_its_sha256(path):
    text = make_key()
    append_key(path, key_of(text))
    assert hashlib.sha256(text.encode()).hexdigest() in path.read_text()
    assert text not in path.read_text()


@given(st.binary(max_size=600))
def test_only_the_key_itself_is_found(credential):
    text = "lgm_the-only-one"
    ring = KeyRing([key_of(text)])
    assert (ring.find(credential) is not None) == (credential == text.encode())
    assert ring.find(text.encode()) is not None
    assert ring.find(text.encode() + b"\0") is ring.find(text[:-1].encode()) is None


@pytest.mark.parametrize(("lifetime", "valid"), [(timedelta(hours=1), True), (timedelta(seconds=-1), False)])
def test_a_key_is_valid_until_it_expires(lifetime, valid):
    ring = KeyRing([key_of("text", expires=datetime.now(UTC) + lifetime)])
    assert (ring.find(b"text") is not None) is valid


def test_a_revoked_key_is_not_found_and_the_others_are(path):
    append_key(path, key_of("one", id="one"))
    append_key(path, key_of("two", id="two"))
    append_revocation(path, "one")
    ring = read_keys(path)
    assert ring.find(b"one") is None
    assert ring.find(b"two") == ring.keys[1]


def test_what_is_written_is_read_again(path):
    key = key_of("text", role=Role.REVIEW, expires=datetime(2027, 1, 1, 12, 30, tzinfo=UTC))
    append_key(path, key)
    assert read_keys(path).keys == (key,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keys = ", "not TOML"),
        ("[[key]]", "key: Extra inputs"),
        (ENTRY.format(id="a b", sha256="0" * 64), r"keys\[0\].id: "),
        (ENTRY.format(id="a", sha256="lgm_a-key-by-mistake"), r"keys\[0\].sha256: "),
        (ENTRY.format(id="a", sha256="0" * 64).replace("predict", "root"), r"keys\[0\].role: "),
        (ENTRY.format(id="a", sha256="0" * 64).replace("T00:00:00Z", "T00:00:00"), r"keys\[0\].created: .*timezone"),
        (ENTRY.format(id="a", sha256="0" * 64) + ENTRY.format(id="a", sha256="1" * 64), "two entries .* same id"),
        (ENTRY.format(id="a", sha256="0" * 64) + ENTRY.format(id="b", sha256="0" * 64), "two entries .* same sha256"),
    ],
)
def test_a_broken_file_is_refused_and_what_stands_there_is_not_told(text, message):
    with pytest.raises(KeyFileError, match=message) as caught:
        parse_keys(text)
    assert "by-mistake" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o777])
def test_a_file_that_is_open_to_every_user_is_refused(path, mode):
    append_key(path, key_of("text"))
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=rf"mode {mode:04o}\); chmod o-rwx"):
        read_keys(path)
    path.chmod(0o640)
    assert len(read_keys(path).keys) == 1


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(KeyFileError, match=r"nothing\.toml cannot be read: No such file"):
        read_keys(tmp_path / "nothing.toml")
    with pytest.raises(KeyFileError, match="Is a directory"):
        read_keys(tmp_path)


def test_a_new_key_and_a_revocation_are_taken_up(key_file, path):
    keys, text = key_file
    append_key(path, key_of("other", id="other"))
    assert keys.ring.find(b"other") is not None
    append_revocation(path, "ci-1")
    assert keys.ring.find(text.encode()) is None


def test_a_replaced_file_is_taken_up(key_file, path, tmp_path):
    keys, text = key_file
    append_key(tmp_path / "new", key_of("other", id="other"))
    os.replace(tmp_path / "new", path)
    assert keys.ring.find(b"other") is not None
    assert keys.ring.find(text.encode()) is None


@pytest.mark.parametrize("harm", ["garbage", "gone", "readable by everyone"])
def test_a_change_that_breaks_the_file_changes_nothing(key_file, path, harm, caplog):
    keys, text = key_file
    content = path.read_text()
    match harm:
        case "garbage":
            path.write_text("[[keys]]\nid = ")
        case "gone":
            path.unlink()
        case "readable by everyone":
            path.chmod(0o644)
    for _ in range(3):
        assert keys.ring.find(text.encode()) is not None
        assert keys.ring.find(b"") is keys.ring.find(b"x") is None
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "the keys read before stay valid" in errors[0].message
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(content + ENTRY.format(id="later", sha256=digest_of(b"later").hex()))
    assert keys.ring.find(b"later") is not None


def test_an_emptied_file_lets_nobody_in_and_the_log_says_so(key_file, path, caplog):
    keys, text = key_file
    assert "no valid key" not in caplog.text
    path.write_text("")
    assert keys.ring.find(text.encode()) is None
    assert f"{path} has no valid key, so nobody gets in" in caplog.text


@pytest.mark.parametrize("expires", [None, datetime(2026, 1, 2, tzinfo=UTC)])
def test_a_file_without_a_valid_key_is_warned_of_at_the_start(path, expires, caplog):
    append_key(path, key_of("old", expires=expires))
    append_revocation(path, "ci-1" if expires is None else "another")
    KeyFile(path)
    assert "has no valid key, so nobody gets in" in caplog.text


def test_files_are_looked_at_once_a_second_at_most(path):
    now = 0.0
    path.touch()
    watch = FileWatch(path, every_seconds=1, clock=lambda: now)
    path.write_text("changed")
    assert not watch.changed()
    now = 1.0
    assert watch.changed()
    assert not watch.changed()
    now = 2.0
    assert not watch.changed()


def test_new_prints_the_key_once_and_makes_a_file_for_its_owner_alone(path):
    result = invoke("new", "--file", str(path), "--role", "review", "--name", "ana", "--expires", "90d")
    text = result.stdout.strip()
    (key,) = read_keys(path).keys
    assert read_keys(path).find(text.encode()) == key
    assert re.fullmatch("ana-[0-9a-f]{6}", key.id)
    assert key.role is Role.REVIEW
    assert key.expires is not None
    assert key.expires - key.created == timedelta(days=90)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.id in result.stderr
    assert text not in path.read_text() + result.stderr


def test_several_keys_of_one_name_are_valid_at_a_time(path):
    old, new = new_key(path), new_key(path, "--expires", "12h")
    ring = read_keys(path)
    assert None not in (ring.find(old.encode()), ring.find(new.encode()))


def test_list_shows_ids_roles_and_states_but_no_key(path):
    text = new_key(path, "--expires", "4w")
    append_key(path, key_of("old", id="old-1", role=Role.ADMIN, expires=datetime(2026, 1, 2, tzinfo=UTC)))
    (first, _) = read_keys(path).keys
    assert invoke("revoke", "--file", str(path), first.id).stdout == f"{first.id} is revoked\n"
    shown = invoke("list", "--file", str(path)).stdout
    assert re.search(rf"{first.id} +predict .* revoked", shown)
    assert re.search(r"old-1 +admin +2026-01-01 +2026-01-02 00:00Z +expired", shown)
    assert text not in shown
    assert digest_of(text.encode()).hex() not in shown


def test_revoking_twice_is_as_once(path):
    new_key(path)
    (key,) = read_keys(path).keys
    invoke("revoke", "--file", str(path), key.id)
    content = path.read_text()
    assert invoke("revoke", "--file", str(path), key.id).exit_code == 0
    assert path.read_text() == content


def test_keys_made_at_once_are_all_kept(path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_key(path, key_of(str(number), id=str(number))), range(64)))
    assert {key.id for key in read_keys(path).keys} == {str(number) for number in range(64)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "--role", "predict", "--name", "a b"], "--name: 1 to 48 of"),
        (["new", "--role", "predict", "--name", "-x"], "--name: 1 to 48 of .*, first no -, got '-x'"),
        (["new", "--role", "predict", "--name", "ci", "--expires", "soon"], "--expires: a number .* got 'soon'"),
        (["new", "--role", "predict", "--name", "ci", "--expires", "0d"], "--expires: a number"),
        (["revoke", "nobody-1"], "no key has the id 'nobody-1'"),
    ],
)
def test_what_is_wrong_is_one_line(path, arguments, message):
    new_key(path)
    content = path.read_text()
    result = invoke(*arguments, "--file", str(path))
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert path.read_text() == content


INLINE = f'keys = [{{id="a-1", role="admin", sha256="{"0" * 64}", created=2026-01-01T00:00:00Z}}]\n'


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (INLINE, ["new", "--role", "predict", "--name", "ci"], r"no \[\[keys\]\] .* as \[\[keys\]\] tables"),
        (
            "revoked = []\n" + ENTRY.format(id="a-1", sha256="0" * 64),
            ["revoke", "a-1"],
            r"nothing for `revoked = \[\]`",
        ),
    ],
)
def test_what_would_break_the_file_is_refused(path, content, arguments, message):
    path.touch(0o600)
    path.write_text(content)
    assert invoke("list", "--file", str(path)).exit_code == 0
    result = invoke(*arguments, "--file", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert path.read_text() == content


def test_what_would_make_the_file_larger_than_is_read_is_refused(path):
    path.touch(0o600)
    path.write_text("#" * MAX_FILE_BYTES)
    assert read_keys(path).keys == ()
    with pytest.raises(KeyFileError, match=f"is full: {MAX_FILE_BYTES} bytes"):
        append_key(path, key_of("text"))
    assert read_keys(path).keys == ()


def test_a_full_disk_leaves_the_file_as_it_was(path):
    append_key(path, key_of("first"))
    before = path.read_bytes()
    with files_of_at_most(len(before) + 10), pytest.raises(KeyFileError, match="cannot be written: No space left"):
        append_key(path, key_of("second", id="ci-2"))
    assert path.read_bytes() == before


def test_nothing_is_added_to_a_broken_file(path):
    path.touch(0o600)
    path.write_text("broken")
    result = invoke("new", "--file", str(path), "--role", "predict", "--name", "ci")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "not TOML" in result.stderr
    assert path.read_text() == "broken"
