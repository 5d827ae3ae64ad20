"""What is served over TLS is what the files hold now, and what clients would refuse is told."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from service.errors import SettingsError
from service.file_watch import FileWatch
from service.tls import Certificate
from tests.service.test_listener import opened, run

ECDSA, RSA = trustme.KeyType.ECDSA, trustme.KeyType.RSA


class Files:
    """The three files of a server, as whoever renews certificates would write them."""

    def __init__(self, folder: Path):
        self.certificate, self.key, self.client_ca = (folder / name for name in ("certificate", "key", "client_ca"))
        self.authority = trustme.CA()

    def issue(self, **options: Any) -> bytes:
        """A new certificate; its DER."""
        issued = self.authority.issue_cert("localhost", **options)
        issued.private_key_pem.write_to_path(self.key)
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        return ssl.PEM_cert_to_DER_cert(self.certificate.read_text())

    def trust(self, authority: trustme.CA) -> None:
        authority.cert_pem.write_to_path(self.client_ca)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(autouse=True)
def at_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tls.FileWatch", partial(FileWatch, every_seconds=0))


def client_of(files: Files, authority: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    files.authority.configure_trust(context)
    if authority is not None:
        authority.issue_cert("client@example.org").configure_cert(context)
    return context


async def shown(port: int, client: ssl.SSLContext) -> bytes | None:
    """The server's certificate; None where the client was not let in."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    try:
        async with asyncio.timeout(20):
            return certificate if await reader.read() == b"hello" else None
    except (ssl.SSLError, ConnectionError):  # with TLS 1.3 it hears of it when its own part is done
        return None
    finally:
        writer.close()


@pytest.mark.parametrize("missing", ["tls_certificate", "tls_key", "tls_client_ca"])
def test_a_missing_file_is_told_by_its_setting(files: Files, tmp_path, missing):
    files.issue()
    files.trust(files.authority)
    given = {"tls_certificate": files.certificate, "tls_key": files.key, "tls_client_ca": files.client_ca}
    given[missing] = tmp_path / "nothing.pem"
    with pytest.raises(SettingsError, match=rf"^{missing}: .*nothing\.pem cannot be read"):
        Certificate(*given.values())


@pytest.mark.parametrize(("before", "after"), [(ECDSA, RSA), (RSA, ECDSA), (ECDSA, ECDSA)])
def test_nobody_is_shown_the_certificate_before(files: Files, before, after):
    async def scenario() -> None:
        first = files.issue(key_type=before)
        certificate = Certificate(files.certificate, files.key, None)
        async with opened(tls=certificate.context) as (_, port):
            assert await shown(port, client_of(files)) == first
            second = files.issue(key_type=after)
            assert await shown(port, client_of(files)) == second
            files.key.write_text("no key")
            assert await shown(port, client_of(files)) == second

    run(scenario)


def test_authorities_that_were_taken_away_let_nobody_in(files: Files):
    former, present = trustme.CA(), trustme.CA()

    async def scenario() -> None:
        files.issue()
        files.trust(former)
        certificate = Certificate(files.certificate, files.key, files.client_ca)
        async with opened(tls=certificate.context) as (_, port):
            assert await shown(port, client_of(files, former))
            files.trust(present)
            assert await shown(port, client_of(files, present))
            for stranger in (client_of(files, former), client_of(files)):
                assert await shown(port, stranger) is None

    run(scenario)


@pytest.mark.parametrize("client_ca", [True, False])
@pytest.mark.parametrize(
    ("from_day", "to_day", "told"), [(-9, -1, "has expired"), (1, 9, "is not yet valid"), (-1, 1, None)]
)
def test_a_certificate_out_of_its_time_is_told_at_the_start_and_when_renewed(
    files: Files, caplog, client_ca, from_day, to_day, told
):
    now = datetime.now(UTC)
    issue = partial(files.issue, not_before=now + timedelta(from_day), not_after=now + timedelta(to_day))
    issue()
    files.trust(files.authority)
    with caplog.at_level(logging.WARNING, logger="service.tls"):
        certificate = Certificate(files.certificate, files.key, files.client_ca if client_ca else None)
        issue()
        certificate.context()
    expected = f"tls_certificate: clients will refuse {files.certificate}: certificate {told}"
    assert caplog.messages == ([] if told is None else [expected, expected])
