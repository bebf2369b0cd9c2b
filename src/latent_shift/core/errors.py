"""The errors that this package raises on purpose. The command line prints each as one line."""

from __future__ import annotations

from typing import Any


def shortened(value: object, most: int = 300) -> str:
    """The `repr` of a value in one line, its middle left out where it has more than `most` characters."""
    text = " ".join(line.strip() for line in repr(value).splitlines() if line)
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


class LatentShiftError(Exception):
    """Base of every error that this package raises on purpose. The message is one line."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes hand errors over by pickle, which would make them anew from their message alone."""
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[LatentShiftError], arguments: tuple[Any, ...], facts: dict[str, Any]) -> LatentShiftError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(facts)
    return error


class InputError(LatentShiftError, ValueError):
    """An argument, file or setting is wrong. Names the argument, the value received and what was expected."""

    def __init__(self, argument: str, value: object, expected: str) -> None:
        """Formats `argument: expected ..., got ...`.

        Args:
            argument: name of the argument, option, file or key, as the caller knows it.
            value: what was received; a long one is shortened.
            expected: what would have been right, as it reads after "must".
        """
        super().__init__(f"{argument} must {expected}, got {shortened(value)}")
        self.argument = argument

    def rename(self, argument: str) -> None:
        """Has the message call the argument as another caller knows it."""
        self.args = (argument + str(self).removeprefix(self.argument),)
        self.argument = argument


class MissingExtraError(LatentShiftError, ImportError):
    """An optional library is not installed. Names the extra that brings it."""

    def __init__(self, library: str, extra: str) -> None:
        """Formats the `pip install` line that mends it."""
        super().__init__(f"{library} is not installed; run: pip install 'latent-shift[{extra}]'")


class DataError(LatentShiftError):
    """A file of data or a checkpoint is truncated, corrupt or not what its manifest says. Names the file."""
