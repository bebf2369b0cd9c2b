"""The human study of the paper (Sec. 4.2): raters compare two clips of one sentence. Imports `core` alone, no torch."""

from .create import ClipWriter, System, create_study
from .pairing import Source, Unpaired, find_sources
from .records import Clip, Pair
from .report import read_report, write_report
from .settings import StudySettings
from .store import Store

__all__ = [
    "Clip",
    "ClipWriter",
    "Pair",
    "Source",
    "Store",
    "StudySettings",
    "System",
    "Unpaired",
    "create_study",
    "find_sources",
    "read_report",
    "write_report",
]
