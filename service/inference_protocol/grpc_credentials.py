"""TLS of the gRPC port: the files and rules of HTTPS, renewed ones taken up while it serves."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from service.errors import SettingsError
from service.file_watch import FileWatch
from service.settings import Settings
from service.tls import read_context

logger = logging.getLogger(__name__)


def credentials_of(settings: Settings) -> Any:
    """None without tls_certificate. Raises SettingsError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    fetch = _fetcher(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return grpc.dynamic_ssl_server_credentials(
        _read(settings.tls_certificate, settings.tls_key, settings.tls_client_ca),
        fetch,
        require_client_authentication=settings.tls_client_ca is not None,
    )


def _fetcher(certificate: Path, key: Path, client_ca: Path | None) -> Callable[[], Any]:
    watch = FileWatch(*filter(None, (certificate, key, client_ca)))

    def fetch() -> Any:
        """What to show from now on; None while that stays the same. Called before each handshake."""
        if not watch.changed():
            return None
        try:
            return _read(certificate, key, client_ca)
        except SettingsError as error:
            logger.error("%s; gRPC keeps the certificate read before", error)
            return None

    return fetch


def _read(certificate: Path, key: Path, client_ca: Path | None) -> Any:
    """Raises SettingsError, since gRPC would only log that it shows nothing."""
    read_context(certificate, key, client_ca)
    authorities = None if client_ca is None else client_ca.read_bytes()
    return grpc.ssl_server_certificate_configuration([(key.read_bytes(), certificate.read_bytes())], authorities)
