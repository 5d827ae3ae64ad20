"""Whether a caller has hung up, asked without waiting for the answer."""

from collections.abc import Callable

from starlette.types import Receive


def hung_up(receive: Receive) -> Callable[[], bool]:
    """A question that costs nothing until it is asked; once the body is read, all that can come is the end."""

    def ask() -> bool:
        waiting = receive()
        try:
            waiting.send(None)  # type: ignore[attr-defined]
        except StopIteration as arrived:
            message: dict[str, object] = arrived.value
            return message["type"] == "http.disconnect"
        else:
            waiting.close()  # type: ignore[attr-defined]
            return False

    return ask
