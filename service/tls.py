"""HTTPS: TLS 1.2 or newer, client certificates on demand, renewed files taken up while it serves."""

import logging
import ssl
from contextlib import suppress
from pathlib import Path

from service.errors import SettingsError
from service.file_watch import FileWatch
from service.settings import Settings

logger = logging.getLogger(__name__)


class Certificate:
    """The server's, with its key and the authorities of its clients, as the files have them now."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None):
        """Raises SettingsError."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._watch = FileWatch(*filter(None, (certificate, key, client_ca)))
        self._context = self._read()

    def context(self) -> ssl.SSLContext:
        """That of the next connection, with changed files taken up; broken ones change nothing."""
        if self._watch.changed():
            try:
                self._context = self._read()
            except SettingsError as error:
                logger.error("%s; the certificate read before stays", error)
            else:
                logger.info("read the certificate again")
        return self._context

    def _read(self) -> ssl.SSLContext:
        context = read_context(self._certificate, self._key, self._client_ca)
        fault = _fault(context, self._certificate)
        if fault is not None:
            logger.warning("tls_certificate: clients will refuse %s: %s", self._certificate, fault)
        return context


def certificate_of(settings: Settings) -> Certificate | None:
    """Raises SettingsError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def read_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """A new one: what a context has loaded before stays in it, a certificate beside one of another kind of key.

    Its ciphers are Python's own choice: forward secrecy, authenticated encryption. Raises SettingsError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    _load(context, certificate, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust(context, client_ca)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _check_readable("tls_certificate", certificate)
    _check_readable("tls_key", key)
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        raise SettingsError(
            f"tls_certificate, tls_key: {certificate} and {key} are no chain and its key in PEM "
            f"without a password ({error.reason or 'not PEM'})"
        ) from None


def _trust(context: ssl.SSLContext, authorities: Path) -> None:
    _check_readable("tls_client_ca", authorities)
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise SettingsError(f"tls_client_ca: {authorities} holds no PEM certificate ({error.reason})") from None


def _check_readable(setting: str, path: Path) -> None:
    """OpenSSL does not say which file it could not read."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"{setting}: {path} cannot be read: {error.strerror}") from None


def _fault(context: ssl.SSLContext, certificate: Path) -> str | None:
    """What clients who trust the certificate have against it, such as that it has expired."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        trusting.load_verify_locations(certificate)
        _shake_hands(trusting, context)
    except ssl.SSLError as error:
        return getattr(error, "verify_message", error.reason)
    return None


def _shake_hands(trusting: ssl.SSLContext, showing: ssl.SSLContext) -> None:
    """In memory, as far as the client's judgement. Raises ssl.SSLError."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = showing.wrap_bio(to_server, to_client, server_side=True)
    for end in (client, server, client):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
