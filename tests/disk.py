"""A full disk, as far as a test may make one: files that cannot grow beyond a size."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def full_disk() -> Iterator[Callable[[int], None]]:
    """Yields what sets the size beyond which this process can write no file; the end of the block takes it back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
