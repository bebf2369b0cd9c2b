from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest

from latent_shift.core.errors import DataError, InputError, LatentShiftError, MissingExtraError, shortened
from latent_shift.core.shapes import check_at_least, check_divisible, check_number


def test_one_base_for_all_and_the_builtin_one_besides() -> None:
    assert issubclass(InputError, LatentShiftError)
    assert issubclass(InputError, ValueError)
    assert issubclass(MissingExtraError, LatentShiftError)
    assert issubclass(MissingExtraError, ImportError)
    assert issubclass(DataError, LatentShiftError)


def test_an_input_error_names_argument_value_and_expectation_on_one_line() -> None:
    error = InputError("height", "25\n0", "be divisible by 8")
    assert str(error) == r"height must be divisible by 8, got '25\n0'"
    assert error.argument == "height"


def test_an_argument_may_be_called_as_another_caller_knows_it() -> None:
    error = InputError("steps", 0, "be at least 1, as steps are")
    error.rename("--steps")
    assert (str(error), error.argument) == ("--steps must be at least 1, as steps are, got 0", "--steps")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_long_value_is_shortened() -> None:
    assert shortened("x" * 298) == repr("x" * 298)
    assert shortened("x" * 299) == f"'{'x' * 149} ... {'x' * 149}'"
    assert shortened("a red heart", 6) == "'a  ... rt'"
    assert str(InputError("latents", np.zeros((2, 1)), "fit")) == "latents must fit, got array([[0.], [0.]])"
    assert len(str(InputError("latents", np.arange(900), "fit"))) < 350


@pytest.mark.parametrize(
    "error", [InputError("height", 250, "be divisible by 8"), MissingExtraError("av", "x"), DataError("a.mp4 is cut")]
)
def test_errors_of_other_processes_arrive_as_they_were(error: LatentShiftError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.__dict__) == (str(error), error.__dict__)


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert str(MissingExtraError("matplotlib", "train")) == (
        "matplotlib is not installed; run: pip install 'latent-shift[train]'"
    )


@pytest.mark.parametrize(("value", "minimum"), [(0, 1), (-1, 0), (0.99, 1.0), (float("nan"), 0.0)])
def test_too_little_is_refused(value: float, minimum: float) -> None:
    with pytest.raises(InputError, match=rf"^steps must be at least {minimum}, got {value}$"):
        check_at_least("steps", value, minimum)


@pytest.mark.parametrize(("value", "factor"), [(0, 8), (-8, 8), (250, 8), (1, 2)])
def test_what_does_not_divide_is_refused(value: int, factor: int) -> None:
    with pytest.raises(InputError, match=rf"^height must be a positive multiple of {factor}, got {value}$"):
        check_divisible("height", value, factor)


def test_the_bounds_themselves_are_right() -> None:
    check_at_least("steps", 1, 1)
    check_divisible("height", 8, 8)
    check_divisible("height", 256, 8)


@pytest.mark.parametrize("value", [1, 1.5, np.float32(2), np.int8(3), Fraction(1, 3)])
def test_what_counts_as_a_number(value: object) -> None:
    check_number("eta", value)


@pytest.mark.parametrize("value", ["1", None, True, [1], float("nan"), float("inf"), 1j, 10**400])
def test_what_does_not(value: object) -> None:
    with pytest.raises(InputError, match="^eta must be a number, got "):
        check_number("eta", value)
