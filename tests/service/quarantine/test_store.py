import os
from datetime import UTC, datetime, timedelta

import pytest

from service.errors import QuarantineUnavailableError, SettingsError
from service.quarantine.files import NPY, PNG, ImageFile
from service.quarantine.store import Store
from tests.object_store import ObjectStore

ONE, TWO, THREE = ("1" * 64, "2" * 64, "3" * 64)


def later() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def test_what_is_put_can_be_read_until_it_is_deleted(store_address):
    store = Store(store_address)
    store.put(ImageFile(b"one", PNG, ONE))
    store.put(ImageFile(b"one", PNG, ONE), ImageFile(b"two", NPY, TWO))
    store.put()
    assert (store.read(ONE, PNG), store.read(TWO, NPY)) == (b"one", b"two")
    store.delete(ONE, PNG)
    store.delete(ONE, PNG)
    with pytest.raises(QuarantineUnavailableError):
        store.read(ONE, PNG)
    assert Store(store_address).read(TWO, NPY) == b"two"


def test_orphans_go_once_they_are_old_enough(store_address):
    store = Store(store_address)
    assert store.delete_orphans(set, before=later()) == 0
    store.put(*(ImageFile(b"content", PNG, digest) for digest in (ONE, TWO, THREE)))
    assert store.delete_orphans(lambda digests: set(), before=datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.delete_orphans(lambda digests: {TWO} & set(digests), before=later()) == 2
    assert store.read(TWO, PNG) == b"content"


def test_what_was_half_written_is_an_orphan_too(tmp_path):
    store = Store(str(tmp_path))
    store.put(ImageFile(b"one", PNG, ONE))
    (tmp_path / ONE[:2] / ".half").write_bytes(b"on")
    assert store.delete_orphans(lambda digests: {ONE}, before=later()) == 1
    assert os.listdir(tmp_path / ONE[:2]) == [f"{ONE}.png"]


def test_a_folder_that_cannot_be_written_is_unavailable(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(QuarantineUnavailableError):
        Store(str(tmp_path / "file")).put(ImageFile(b"one", PNG, ONE))


def test_a_server_that_is_not_there_is_unavailable(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(QuarantineUnavailableError):
        Store("s3://elsewhere/files").put(ImageFile(b"one", PNG, ONE))


def test_what_was_put_outlives_an_outage(bucket: str, object_store: ObjectStore) -> None:
    store = Store(bucket)
    store.put(ImageFile(b"one", PNG, ONE))
    object_store.stop()
    try:
        with pytest.raises(QuarantineUnavailableError):
            store.put(ImageFile(b"two", PNG, TWO))
    finally:
        object_store.start()
    assert store.read(ONE, PNG) == b"one"
    store.put(ImageFile(b"two", PNG, TWO))
    assert store.read(TWO, PNG) == b"two"


def test_an_unknown_kind_of_store_is_a_wrong_setting():
    with pytest.raises(SettingsError, match=r"quarantine_store: .*gopher"):
        Store("gopher://files")


def test_a_password_in_its_url_is_not_logged(caplog):
    url = "http://user:secret@127.0.0.1:1/images"
    with pytest.raises(QuarantineUnavailableError):
        Store(url).read(ONE, PNG)
    assert "the quarantine's store" in caplog.text
    assert "secret" not in caplog.text
