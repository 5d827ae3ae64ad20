"""The one error tree of the package: every error a user can cause derives from LGMGuardError."""


class LGMGuardError(Exception):
    """An error of the caller's; its message names what is wrong, the limit, and what to do."""


class ConfigurationError(LGMGuardError):
    """A configuration that cannot be run: unknown key, value out of range, parts that do not fit."""


class DivergenceError(ConfigurationError):
    """Training whose loss is no longer finite; its message names the epoch and what to lower."""


class ProcessError(LGMGuardError):
    """One of several training processes failed; its message says why, and what the run's folder holds."""


class StoppedError(ProcessError):
    """A signal to the launcher ended all training processes; its message says what the run's folder holds."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class DataError(LGMGuardError):
    """Data that is missing, unreadable or does not fit the network."""


class ImageError(DataError):
    """One image that cannot be judged: not an image, wrong shape, outside [0, 1], too large."""


class CheckpointError(LGMGuardError):
    """A training checkpoint that is missing, damaged or of another run."""


class CalibrationError(LGMGuardError):
    """Clean data that cannot support the promised false-alarm rate."""


class BundleError(LGMGuardError):
    """A bundle that is missing, changed, of an unknown schema, or that does not reproduce its scores."""


class ExportError(LGMGuardError):
    """A bundle that cannot leave in a format, or whose exported graph says something else."""
