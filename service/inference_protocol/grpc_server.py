"""The protocol's gRPC server: on the HTTP server's event loop, over the same engines, behind the same door."""

import logging
from typing import Any

import grpc

from service.access import check_exposure
from service.addresses import resolve, with_port
from service.errors import SettingsError
from service.inference_protocol import messages
from service.inference_protocol.grpc_credentials import credentials_of
from service.inference_protocol.grpc_door import Method
from service.inference_protocol.grpc_methods import METHODS
from service.runtime import Runtime
from service.settings import Settings

logger = logging.getLogger(__name__)


async def listen(runtime: Runtime) -> tuple[Any, int]:
    """A started grpc.aio.Server at the settings' host and grpc_port, and its port.

    Raises SettingsError where the port cannot be had, or would be open to others without a key.
    """
    settings = runtime.settings
    host, credentials = _host(settings), credentials_of(settings)
    server = grpc.aio.server(options=_options(settings))
    server.add_generic_rpc_handlers((_handlers(runtime),))
    try:
        port = _add_port(server, with_port(host, settings.grpc_port or 0), credentials)
    except RuntimeError:
        await server.stop(None)
        raise _unavailable(settings) from None
    await server.start()
    logger.info("listening for gRPC on %s", with_port(host, port))
    return server, port


def _host(settings: Settings) -> str:
    """The address, once it is known that it may be listened to."""
    try:
        address: tuple[str, int] = resolve(settings.host, settings.grpc_port or 0)[3]
    except OSError:
        raise _unavailable(settings) from None
    check_exposure(settings, address[0])
    return address[0]


def _add_port(server: Any, where: str, credentials: Any) -> int:
    """Raises RuntimeError."""
    port: int = server.add_secure_port(where, credentials) if credentials else server.add_insecure_port(where)
    return port


def _unavailable(settings: Settings) -> SettingsError:
    return SettingsError(f"cannot listen on {with_port(settings.host, settings.grpc_port or 0)} for gRPC (grpc_port)")


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_metadata_size", settings.max_head_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_head_bytes),
        ("grpc.so_reuseport", 0),  # else two servers could share a port unknowingly
    ]


def _handlers(runtime: Runtime) -> Any:
    """As if requests were streams, so that a call may be refused before its message is read; on the wire it is the
    same. Without deserializers, so that a broken message is the caller's fault and not an internal error.
    """
    return grpc.method_handlers_generic_handler(
        messages.SERVICE.full_name,
        {
            name: grpc.stream_unary_rpc_method_handler(Method(runtime, name, answer).call)
            for name, answer in METHODS.items()
        },
    )
