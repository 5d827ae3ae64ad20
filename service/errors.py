"""What can go wrong with a request. Nothing here knows of HTTP; problems.py says which status each error is."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from model.errors import ConfigurationError, LGMGuardError


@dataclass(frozen=True, slots=True)
class FieldFault:
    """One fault of the caller's: where it is and what is wrong with it."""

    field: str
    detail: str


class ServiceError(LGMGuardError):
    """Base of what the service answers with; `code` names the kind in answers and metrics."""

    code: ClassVar[str]
    retry_after_seconds: int = 1


class RequestError(ServiceError):
    """A request that cannot be answered; names each faulty field."""

    def __init__(self, *faults: FieldFault):
        super().__init__("; ".join(f"{fault.field}: {fault.detail}" for fault in faults[:3]))
        self.faults = faults


def faults_of(problems: Iterable[Mapping[str, Any]]) -> list[FieldFault]:
    """pydantic's findings, each with its path."""
    return [FieldFault(".".join(map(str, found["loc"])) or "body", str(found["msg"])) for found in problems]


class MalformedBodyError(RequestError):
    code = "malformed-body"


class UnsupportedMediaError(RequestError):
    code = "unsupported-media-type"


class BodyTooLargeError(RequestError):
    code = "body-too-large"


class SlowBodyError(RequestError):
    code = "body-too-slow"


class InvalidInputError(RequestError):
    code = "invalid-input"


class InvalidImagesError(InvalidInputError):
    """Its images were read, and each of its faults is one of them that cannot be judged."""


class InvalidParametersError(RequestError):
    """No image is at fault, but what was asked about it."""

    code = "invalid-parameters"


class OverloadedError(ServiceError):
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_seconds: int = 1):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class NotReadyError(ServiceError):
    code = "not-ready"


class DeadlineError(ServiceError):
    code = "timeout"


class AbandonedError(ServiceError):
    """Whoever asked has gone; nobody reads this answer."""

    code = "client-closed-request"


class UnknownModelError(ServiceError):
    code = "unknown-model"


class ActivationError(ServiceError):
    """A version that cannot be loaded, activated or unloaded; what served goes on serving."""

    code = "activation-refused"


class InferenceError(ServiceError):
    code = "inference-failed"


class WorkerDiedError(InferenceError):
    """The process that judged has ended over it."""


class UnauthenticatedError(ServiceError):
    code = "unauthenticated"


class ForbiddenError(ServiceError):
    code = "forbidden"


class TooManyRequestsError(ServiceError):
    """One caller has more requests in flight than it may."""

    code = "too-many-in-flight"


class RateLimitedError(ServiceError):
    """One caller sends faster than it may."""

    code = "rate-limited"

    def __init__(self, retry_after_seconds: float):
        self.retry_after_seconds = math.ceil(retry_after_seconds)
        super().__init__(f"this caller sends faster than it may; come back in {self.retry_after_seconds} s")


class UnknownItemError(ServiceError):
    code = "unknown-item"


class TransitionError(ServiceError):
    """A review that the state of an item does not allow."""

    code = "transition-refused"


class ChangedMeanwhileError(ServiceError):
    """Somebody else has reviewed the item since it was read."""

    code = "changed-meanwhile"


class MissingPreconditionError(ServiceError):
    """A change that does not say on which revision it was decided."""

    code = "precondition-required"


class QuarantineUnavailableError(ServiceError):
    """Its database or store cannot be reached; predictions go on."""

    code = "quarantine-unavailable"


class KeyFileError(ConfigurationError):
    """A file of API keys that cannot be read, holds something else, or may be read by everyone."""


class SettingsError(ConfigurationError):
    """A setting that is unknown, out of range, or that this machine cannot fulfil."""
