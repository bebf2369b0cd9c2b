"""The errors that this package raises on purpose. The command line prints each as one line."""


class LatentShiftError(Exception):
    """Base of every error that this package raises on purpose. The message is one line."""


class InputError(LatentShiftError, ValueError):
    """An argument, file or setting is wrong. Names the argument, the value received and what was expected."""

    def __init__(self, argument: str, value: object, expected: str) -> None:
        """Formats `argument: expected ..., got ...`.

        Args:
            argument: name of the argument, option, file or key, as the caller knows it.
            value: what was received.
            expected: what would have been right, as it reads after "must".
        """
        super().__init__(f"{argument} must {expected}, got {value!r}")
        self.argument = argument


class MissingExtraError(LatentShiftError, ImportError):
    """An optional library is not installed. Names the extra that brings it."""

    def __init__(self, library: str, extra: str) -> None:
        """Formats the `pip install` line that mends it."""
        super().__init__(f"{library} is not installed; run: pip install 'latent-shift[{extra}]'")


class DataError(LatentShiftError):
    """A file of data or a checkpoint is truncated, corrupt or not what its manifest says. Names the file."""
