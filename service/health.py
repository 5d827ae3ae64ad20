"""Whether the service of this container is ready, as an exit status: `python -m service.health`, for HEALTHCHECK.

It is started every few seconds, so it takes the standard library alone, and looks at the variables (LGM_PORT,
LGM_TLS_CERTIFICATE) but no TOML file. Where clients must show certificates, give the container another check.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 2.0


def main() -> int:
    tls = bool(os.environ.get("LGM_TLS_CERTIFICATE"))
    url = f"{'https' if tls else 'http'}://127.0.0.1:{os.environ.get('LGM_PORT', '8000')}/readyz"
    context = ssl.create_default_context()
    context.check_hostname = False  # it is this container; its certificate bears the name that others call it by
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS, context=context):
            return 0
    except (urllib.error.URLError, TimeoutError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
