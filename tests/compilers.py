"""What tests of the C++ operations need."""

from __future__ import annotations

import pytest

from latent_shift.ops import _native

needs_compiler = pytest.mark.skipif(bool(_native.obstacle()), reason=f"the C++ cannot be used: {_native.obstacle()}")
