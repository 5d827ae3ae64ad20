"""What can go wrong with a measurement; each ends the run with one line."""


class BenchmarkError(RuntimeError):
    """Base of all of them."""


class StartError(BenchmarkError):
    """A server that ended or was not ready in time."""


class WrongAnswerError(BenchmarkError):
    """A server that does not say what the screener says."""


class WrkError(BenchmarkError):
    """wrk is not there, or it failed."""
