"""Typed configuration: frozen pydantic models, filled from TOML and `--set a.b=value`."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError


class Config(BaseModel):
    """Base of every configuration class: frozen, and an unknown key is an error.

    A check of several keys together raises an `InputError` that names one of them, from its own table on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


C = TypeVar("C", bound=Config)


def load_config(cls: type[C], path: str | Path | None, overrides: Iterable[str] = (), argument: str = "recipe") -> C:
    """Reads a TOML file into `cls`, with `a.b=value` overrides applied on top.

    Args:
        cls: the configuration class.
        path: a TOML file; None for the overrides alone.
        overrides: `key.subkey=value`; the value is read as TOML, and as a plain string where that fails.
        argument: what names the file, for messages.

    Raises:
        InputError: the file cannot be read, a key is unknown (with the nearest known one) or a value is wrong.
    """
    tree = {} if path is None else _read_toml(Path(path), argument)
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(cls, tree)


def parse_config(cls: type[C], tree: dict[str, Any]) -> C:
    """Validates a nested dict as `cls`; the first problem becomes one `InputError`."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        # A typo in a required key gives two errors; the one that names the typo comes first.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        key = _dotted(tree, first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown_key(key, _known_keys(cls, first["loc"][:-1])) from error
        if first["type"] == "missing":
            raise InputError(_below(key, str(first["loc"][-1])), None, "be given") from error
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # of a check of several keys together
            cause.rename(_below(key, cause.argument))
            raise cause from None
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(key, first["input"], f"be valid ({message})") from error


def describe_settings(cls: type[Config], table: str = "") -> Iterator[tuple[str, str]]:
    """What may be set in a file of `cls`: `(key = default, what it means)`, table by table, the plain keys first.

    Args:
        cls: the configuration class.
        table: the dotted key of the table that it describes.
    """
    tables = []
    for name, field in cls.model_fields.items():
        key, kind = f"{table}{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            tables.append((kind, f"{key}."))
            continue
        default = field.get_default(call_default_factory=True)
        value = "(required)" if field.is_required() else "(none)" if default is None else json.dumps(default)
        choices = get_args(kind)[0] if get_origin(kind) is tuple else kind
        allowed = get_args(choices) if get_origin(choices) is Literal else ()
        meaning = " ".join((field.description or "").split())
        yield f"{key} = {value}", meaning + (f" Values: {', '.join(map(json.dumps, allowed))}." if allowed else "")
    for kind, inner in tables:
        yield from describe_settings(kind, inner)


def _read_toml(path: Path, argument: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(argument, str(path), "be a TOML file that can be read") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(argument, str(path), f"be valid TOML ({error})") from error


def _dotted(tree: Any, place: Sequence[int | str]) -> str:
    """The dotted key of an error's place, without the kinds of value that pydantic adds where several are allowed."""
    parts: list[str] = []
    for part in place:
        inside = part in tree if isinstance(tree, dict) else isinstance(part, int) and _has_index(tree, part)
        if not inside:
            break
        parts.append(str(part))
        tree = tree[part]
    return ".".join(parts)


def _below(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def _has_index(tree: Any, index: int) -> bool:
    return isinstance(tree, list | tuple) and index < len(tree)


def unknown_key(key: str, known: Sequence[str]) -> InputError:
    """The error for a dotted key whose last part is none of `known`: names the nearest one, or all of them."""
    near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f" (one of {', '.join(known)})"
    return InputError("key", key, f"be a known key{hint}")


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError("--set", override, "look like key.subkey=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError("--set", override, f"name a key below a table; {parent!r} is a value")
    tree[last] = value


def _known_keys(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = cls.model_fields[str(part)].annotation if str(part) in cls.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if nested:
            cls = nested[0]
    return sorted(cls.model_fields)
