"""HTTPS: TLS 1.2 or newer, client certificates on demand, a renewed certificate taken up while it serves."""

import logging
import ssl
from pathlib import Path

from service.errors import SettingsError
from service.file_watch import FileWatch
from service.settings import Settings

logger = logging.getLogger(__name__)


class Certificate:
    """The server's context. Its ciphers are Python's own choice: forward secrecy, authenticated encryption."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None):
        """Raises SettingsError."""
        self._certificate, self._key = certificate, key
        self._watch = FileWatch(certificate, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_RENEGOTIATION
        self.context.set_alpn_protocols(["http/1.1"])
        self._load(self.context)
        if client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            _trust(self.context, client_ca)

    def renew(self) -> None:
        """Take up changed files for connections to come; broken ones change nothing."""
        if not self._watch.changed():
            return
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a failure halfway must not reach the one in use
            self._load(self.context)
        except SettingsError as error:
            logger.error("%s; the certificate read before stays", error)
        else:
            logger.info("read the certificate again")

    def _load(self, context: ssl.SSLContext) -> None:
        for path in (self._certificate, self._key):
            _check_readable(path)
        try:
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as error:
            raise SettingsError(
                f"tls_certificate, tls_key: {self._certificate} and {self._key} are no chain and its key in PEM "
                f"without a password ({error.reason or 'not PEM'})"
            ) from None


def certificate_of(settings: Settings) -> Certificate | None:
    """Raises SettingsError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def _trust(context: ssl.SSLContext, authorities: Path) -> None:
    _check_readable(authorities)
    try:
        context.load_verify_locations(authorities)
    except ssl.SSLError as error:
        raise SettingsError(f"tls_client_ca: {authorities} holds no PEM certificate ({error.reason})") from None


def _check_readable(path: Path) -> None:
    """OpenSSL does not say which file it could not read."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise SettingsError(f"TLS: {path} cannot be read: {error.strerror}") from None
