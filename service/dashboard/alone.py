"""The page as a command of its own, for a service that runs elsewhere."""

import ipaddress
import logging
from pathlib import Path

from service.addresses import bind, with_port
from service.client.common import Settings as ClientSettings
from service.client.retries import Retries
from service.dashboard.app import serve
from service.dashboard.options import PREFIX, Options
from service.logs import configure_logs
from service.settings import check_folder

logger = logging.getLogger(__name__)


def show(
    *, url: str, host: str, port: int, bundles: tuple[Path, ...], reports: Path | None, allow_anonymous: bool
) -> None:
    """Serve the page until told to stop. Raises SettingsError, InputError before anything listens."""
    configure_logs(style="console", level="info")
    ClientSettings(url=url, key=None, timeout_seconds=1, retries=Retries(), max_instances=1)  # checks the address
    check_folder("reports", reports)
    with bind(host, port) as listener:
        listener.listen()
        address, taken = listener.getsockname()[:2]
        options = Options(
            url=url,
            allow_anonymous=allow_anonymous,
            on_loopback=ipaddress.ip_address(address).is_loopback,
            bundles=tuple(folder.resolve() for folder in bundles),
            reports=None if reports is None else reports.resolve(),
        )
        logger.info("listening on http://%s%s/", with_port(address, taken), PREFIX)
        serve(options, listener)
