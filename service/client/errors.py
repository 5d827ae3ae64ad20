"""What can go wrong at the client's end. A bad image among several is no error but a value, FailedPrediction."""

from service.client.answers import Problem


class ClientError(Exception):
    """Base of all that a client raises."""


class InputError(ClientError, ValueError):
    """What was asked cannot be sent: not an image, not a URL, a limit below one, by no such proxy."""


class UnreachableError(ClientError):
    """Nobody answered at that address, or not in HTTP."""


class DeadlineError(ClientError):
    """No answer within the time given, retries included."""


class AnswerError(ClientError):
    """An answer that is not lgm-guard's: another server, or a proxy's page."""


class ProblemError(ClientError):
    """The service's refusal, as it told it: see `problem`, and `problem.code` for its kind."""

    def __init__(self, problem: Problem):
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")
        self.problem = problem
