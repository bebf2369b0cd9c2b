"""The limits of a server, in one place."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from latent_shift.core.config import Config


class ServerSettings(Config):
    """What a server allows and keeps."""

    folder: Path
    """Where jobs (SQLite) and results are kept. One server at a time."""
    api_keys: frozenset[str] = frozenset()
    """Whoever calls must show one of these; each sees its own jobs only. Without any, all share everything."""
    allowed_hosts: frozenset[str] | None = frozenset({"localhost", "127.0.0.1", "::1"})
    """Names that the `Host` header may have, without the port; None allows all."""
    allowed_origins: tuple[str, ...] = ()
    """Web sites whose pages may call the API (CORS)."""
    max_queue: int = Field(default=100, ge=1)
    """Jobs that wait; one more is answered 429."""
    max_jobs_per_key: int = Field(default=20, ge=1)
    """Unfinished jobs of one API key."""
    max_requests_per_minute: int = Field(default=120, ge=1)
    """Jobs that one API key may create in a minute."""
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    """Size of a request."""
    max_prompt_chars: int = Field(default=1000, ge=1)
    """Length of a prompt, and of a negative prompt."""
    max_steps: int = Field(default=100, ge=1)
    """Denoising steps."""
    max_frames: int = Field(default=96, ge=1)
    """Frames of a clip."""
    max_side: int = Field(default=256, ge=8)
    """Width and height in pixels."""
    keep_days: float = Field(default=30, gt=0)
    """Finished jobs and their results are removed when they are older."""
    keep_bytes: int = Field(default=10 * 1024**3, ge=1)
    """The oldest results are removed where all together are larger."""
