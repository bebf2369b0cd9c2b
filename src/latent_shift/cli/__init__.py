"""The command line: one file a verb; parses, calls, prints."""

from .app import main

__all__ = ["main"]
