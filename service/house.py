"""What the connections of one server share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.turns import Turns

if TYPE_CHECKING:
    from service.connections import Connection


@dataclass(kw_only=True)
class House:
    """Limits, and `idle`: the connections without a request, oldest first.

    refusal: of method, target and the caller's request id the answer, if all that can be said is no.
    has_room: whether it would not be, as far as can be told before a request is read.
    refuses_lately: whether that was so for some request a moment ago.
    """

    max_connections: int
    max_head_bytes: int
    head_timeout_seconds: float
    body_timeout_seconds: float
    turns: Turns
    refusal: Callable[[bytes, bytes, bytes], bytes | None]
    has_room: Callable[[], bool]
    refuses_lately: Callable[[], bool]
    on_refusal: Callable[[str], None]
    idle: dict["Connection", None] = field(default_factory=dict)
