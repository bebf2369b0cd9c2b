from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from latent_shift.core.config import Config, describe_settings, load_config, parse_config, unknown_key
from latent_shift.core.errors import InputError


class Inner(Config):
    rate: float = Field(0.1, gt=0)
    names: tuple[str, ...] = ()
    table: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Inner:
        if self.rate > len(self.names) + 8:
            raise InputError("rate", self.rate, f"be at most {len(self.names) + 8}, with so many names")
        return self


class Outer(Config):
    output: str
    steps: int = Field(ge=1)
    kind: Literal["image", "video"] = "image"
    flag: bool = False
    limit: int | None = None
    length: Literal["whole"] | Annotated[float, Field(gt=0)] = "whole"
    inner: Inner = Inner()
    maybe: Inner | None = None

    @model_validator(mode="after")
    def _check(self) -> Outer:
        if self.kind == "video" and self.steps < 3:
            raise InputError("steps", self.steps, "be 3 or more for a video")
        return self


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('output = "runs/a"\nsteps = 5\n[inner]\nrate = 0.5\nnames = ["x"]\n', encoding="utf-8")
    return path


def message(*overrides: str, recipe: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_config(Outer, recipe, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_settings_are_described_with_their_defaults_and_values() -> None:
    class Table(Config):
        names: tuple[Literal["a", "b"], ...] = ("a",)
        """Some names,
        on two lines."""

    class File(Config):
        table: Table = Table()
        output: str
        """Where to."""
        limit: int | None = None
        kind: Literal["image", "video"] = "image"

    assert list(describe_settings(File)) == [
        ("output = (required)", "Where to."),
        ("limit = (none)", ""),
        ('kind = "image"', ' Values: "image", "video".'),
        ('table.names = ["a"]', 'Some names, on two lines. Values: "a", "b".'),
    ]


def test_a_file_fills_the_model(recipe: Path) -> None:
    config = load_config(Outer, str(recipe))
    assert config == Outer(output="runs/a", steps=5, inner=Inner(rate=0.5, names=("x",)))
    with pytest.raises(Exception, match="frozen"):
        config.steps = 6  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("output=plain", {"output": "plain"}),
        ("output=runs/with-dash_and.dot", {"output": "runs/with-dash_and.dot"}),
        ('output="quoted"', {"output": "quoted"}),
        ("output=a=b", {"output": "a=b"}),
        ("output=", {"output": ""}),
        ("steps=7", {"steps": 7}),
        ("limit=3", {"limit": 3}),
        ("flag=true", {"flag": True}),
        ("flag=false", {"flag": False}),
        (" steps =8", {"steps": 8}),
        ("inner.rate=1e-3", {"inner": Inner(rate=1e-3, names=("x",))}),
        ('inner.names=["a", "b"]', {"inner": Inner(rate=0.5, names=("a", "b"))}),
        ("inner.names=[]", {"inner": Inner(rate=0.5)}),
        ("inner.table.deep=2", {"inner": Inner(rate=0.5, names=("x",), table={"deep": 2})}),
        ("maybe.rate=2.0", {"maybe": Inner(rate=2.0)}),
        ("inner={rate = 3.0}", {"inner": Inner(rate=3.0)}),
    ],
)
def test_an_override_is_read_as_toml_or_as_a_plain_string(recipe: Path, override: str, value: dict[str, Any]) -> None:
    assert load_config(Outer, recipe, [override]) == load_config(Outer, recipe).model_copy(update=value)


def test_the_last_override_counts(recipe: Path) -> None:
    assert load_config(Outer, recipe, ["steps=7", "steps=9"]).steps == 9


@pytest.mark.parametrize("override", ["steps", "=3", "", "steps:3"])
def test_an_override_without_key_or_value_is_refused(recipe: Path, override: str) -> None:
    assert message(override, recipe=recipe) == f"--set must look like key.subkey=value, got {override!r}"


def test_an_override_below_a_value_is_refused(recipe: Path) -> None:
    text = message("steps.more=3", recipe=recipe)
    assert text == "--set must name a key below a table; 'steps' is a value, got 'steps.more=3'"


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("stesp=3", "stesp", "steps"),
        ("inner.rat=1.0", "inner.rat", "rate"),
        ("inner.nams=[]", "inner.nams", "names"),
        ("maybe.rats=1.0", "maybe.rats", "rate"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(recipe: Path, override: str, key: str, near: str) -> None:
    assert message(override, recipe=recipe) == f"key must be a known key; did you mean {near!r}?, got {key!r}"


def test_a_key_like_no_other_lists_those_of_its_table(recipe: Path) -> None:
    text = message("inner.zzz=1", recipe=recipe)
    assert text == "key must be a known key (one of names, rate, table), got 'inner.zzz'"


def test_a_typo_in_a_required_key_is_named_and_not_the_lack_of_it() -> None:
    with pytest.raises(InputError, match="did you mean 'output'"):
        parse_config(Outer, {"outptu": "x", "steps": 3})


class Pair(Config):
    """Two numbers."""

    betas: tuple[float, float]


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError, match=r"^output must be given, got None$"):
        parse_config(Outer, {"steps": 3})
    with pytest.raises(InputError, match=r"^betas.1 must be given, got None$"):
        parse_config(Pair, {"betas": [0.9]})


@pytest.mark.parametrize(
    ("override", "start", "end"),
    [
        ("steps=0", "steps must be valid (Input should be greater than or equal to 1)", "got 0"),
        ("steps=many", "steps must be valid (Input should be a valid integer", "got 'many'"),
        ("inner.rate=-1.0", "inner.rate must be valid (Input should be greater than 0)", "got -1.0"),
        ("kind=sound", "kind must be valid (Input should be 'image' or 'video')", "got 'sound'"),
        ("inner=3", "inner must be valid (Input should be a valid dictionary", "got 3"),
        ("length=[2.0]", "length must be valid (", "got [2.0]"),
        ("length={a=1}", "length must be valid (", "got {'a': 1}"),
        ("inner.names=[1]", "inner.names.0 must be valid (Input should be a valid string)", "got 1"),
    ],
)
def test_a_bad_value_is_named_with_its_key(recipe: Path, override: str, start: str, end: str) -> None:
    text = message(override, recipe=recipe)
    assert text.startswith(start)
    assert text.endswith(end)


def test_a_check_of_several_keys_names_one_of_them_and_its_value(recipe: Path) -> None:
    assert message("kind=video", "steps=2", recipe=recipe) == "steps must be 3 or more for a video, got 2"
    for table in ("inner", "maybe"):
        text = message(f"{table}.rate=9.5", f"{table}.names=['a']", recipe=recipe)
        assert text == f"{table}.rate must be at most 9, with so many names, got 9.5"


def test_a_file_that_is_not_there_or_no_toml_is_named(tmp_path: Path) -> None:
    missing, broken, binary = tmp_path / "missing.toml", tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("steps = = 3\n")
    binary.write_bytes(b"\xff\xfe")
    readable = "recipe must be a TOML file that can be read, got {!r}"
    assert message(recipe=missing) == readable.format(str(missing))
    assert message(recipe=tmp_path) == readable.format(str(tmp_path))
    assert message(recipe=binary) == readable.format(str(binary))
    assert message(recipe=broken).startswith("recipe must be valid TOML (Invalid value (at line 1")


def test_unknown_key_compares_the_last_part_only() -> None:
    assert "did you mean 'shift_fold'" in str(unknown_key("model.arguments.shiftfold", ["shift_fold", "model"]))
