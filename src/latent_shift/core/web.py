"""What both web servers ask of a request and tell a browser; knows no web library.

A page of another site can make a browser post to a server, and by a trick with its DNS even read the answers (DNS
rebinding). The first shows in `Origin`, the second in `Host`.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?")


def host_name(host: str) -> str:
    """The name in a `Host` header, without port and brackets; empty where it is none."""
    match = _HOST.fullmatch(host.lower())
    return match["name"].strip("[]").rstrip(".") if match else ""


def is_foreign(method: str, host: str, origin: str | None, allowed: Collection[str] = ()) -> bool:
    """Whether a page of a site that is not allowed asks for a change."""
    own = origin is None or origin.partition("://")[2] == host or origin in allowed
    return method not in ("GET", "HEAD", "OPTIONS") and not own


def strict_headers(media: str) -> dict[str, str]:
    """Headers of every answer: its page takes nothing from elsewhere, and is part of no other.

    Args:
        media: the directives for pictures and films, of `Content-Security-Policy`.
    """
    return {
        "Content-Security-Policy": f"default-src 'none'; script-src 'self'; style-src 'self'; {media}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    }
