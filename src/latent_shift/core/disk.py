"""A full or failing disk is one clear line, whichever library found it out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from .errors import DataError, LatentShiftError


class _WriteError(DataError):
    """What could not be written, and why; and what the reader may still rely on, where that was said."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.hint = hint


@contextlib.contextmanager
def clear_write_errors(what: str, hint: str = "") -> Iterator[None]:
    """An error of the disk while the block writes becomes a `DataError` that says what could not be written, and why.

    Args:
        what: what is written, and where.
        hint: what the reader may still rely on, or do.

    Raises:
        DataError: the disk is full, or fails.
    """
    try:
        yield
    except _WriteError as error:  # of a block in this one, which knows better what was written
        if error.hint:
            raise
        raise _WriteError(str(error), hint) from error
    except LatentShiftError:
        raise
    except Exception as error:
        # Libraries in Rust (safetensors, tokenizers) have errors of their own, with the system's number in the text.
        if not isinstance(error, OSError) and not re.search(r"\(os error \d+\)", str(error)):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise _WriteError(f"{what} cannot be written ({reason})", hint) from error
