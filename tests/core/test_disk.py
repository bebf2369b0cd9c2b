from __future__ import annotations

import pytest

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import DataError


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("No space left on device (os error 28)")]
)
def test_the_inner_block_says_what_and_the_outer_one_what_stays(error: Exception) -> None:
    expected = r"^unet cannot be written \(No space left on device.*\); the checkpoint stays$"
    outer, inner = clear_write_errors("run", "the checkpoint stays"), clear_write_errors("unet")
    with pytest.raises(DataError, match=expected), outer, inner:
        raise error


def test_what_is_no_error_of_the_disk_is_left_alone() -> None:
    for error in (DataError("a.safetensors cannot be loaded: No such file (os error 2)"), RuntimeError("a bug")):
        with pytest.raises(type(error)) as caught, clear_write_errors("run"):
            raise error
        assert caught.value is error
