"""The protocol's parameters, scalars by name, of a request, an input or an output."""

from collections.abc import Mapping
from typing import Any

from service.errors import FieldFault, InvalidInputError

# Extensions of Triton's that change what a tensor means, so that to ignore them would be to answer wrongly.
REFUSED = ("shared_memory_region", "classification")
SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")


def refuse_extensions(field: str, parameters: Mapping[str, Any]) -> None:
    for name in REFUSED:
        if name in parameters:
            raise InvalidInputError(FieldFault(f"{field}.parameters.{name}", "this extension is not offered"))


def refuse_sequences(parameters: Mapping[str, Any]) -> None:
    """A request's. Requests are judged alone; what says that it is part of no sequence says nothing."""
    for name in SEQUENCES:
        if parameters.get(name):
            raise InvalidInputError(FieldFault(f"parameters.{name}", "sequences are not offered"))


def truth(field: str, parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInputError(FieldFault(f"{field}.{name}", "must be true or false"))
    return value


def timeout_seconds(parameters: Mapping[str, Any]) -> float | None:
    """Triton's `timeout`, in microseconds; 0 is none."""
    microseconds = parameters.get("timeout", 0)
    if type(microseconds) is not int or not 0 <= microseconds < 2**63:
        raise InvalidInputError(FieldFault("parameters.timeout", "must be a number of microseconds, 0 to 2^63 - 1"))
    return microseconds / 1e6 if microseconds else None
