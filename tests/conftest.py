"""What the tests of every room share."""

from __future__ import annotations

import jaxtyping
import pytest


@pytest.fixture
def as_users_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the checks of annotations off: users have none, and the messages are for them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
