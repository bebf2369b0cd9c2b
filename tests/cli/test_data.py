"""`latent-shift data`: what it prints and refuses. What it builds and finds is tested in `tests/data`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from media.films import write_film

from latent_shift.media import read_video

from .conftest import Refused, Run


@pytest.mark.parametrize("exists", [False, True])
def test_packages_that_are_not_there_are_one_line(refused: Refused, tmp_path: Path, exists: bool) -> None:
    packages = tmp_path / "packages"
    if exists:
        packages.mkdir()
    message = refused("data", "emoji", "--packages", packages, "--output", "data")
    assert message.startswith("--packages must hold ")
    assert ".tgz (npm pack " in message
    assert message.endswith(f"got {str(packages)!r}")


def test_a_folder_of_something_else_is_not_overwritten(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    message = refused("data", "emoji", "--packages", tmp_path, "--output", tmp_path / "letters")
    assert message.startswith(
        ("--packages must hold ", "--output must be empty or begun by this command; it has letter")
    )


def test_no_workers_are_one_line(refused: Refused) -> None:
    assert refused("data", "emoji", "--workers", "0") == "--workers must be at least 1, got 0"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    write_film(folder / "a.mp4", 60)
    (folder / "a.txt").write_text("a film")
    write_film(folder / "silent.mp4", 60)
    return folder


def test_check_prints_what_is_there_and_what_is_dropped(run: Run, films: Path, tmp_path: Path) -> None:
    result = run("data", "check", films, "--all", "--size", "32", "--sheet", tmp_path / "sheet.png")
    assert result.code == 0
    assert "records: 1   captions: 1" in result.out
    assert "sizes: 64x48 (1)" in result.out
    assert f"dropped: 1\n  {films / 'silent.mp4'}: there is no silent.txt beside it" in result.out
    assert read_video(tmp_path / "sheet.png").frames.shape[1] > 32


def test_check_as_json(run: Run, films: Path) -> None:
    report = json.loads(run("data", "check", f"files:{films}", "--sample", "5", "--json", "--num-frames", "2").out)
    assert (report["records"], report["usable"], report["clips"]) == (1, 1, 1)
    assert report["dropped"][0]["reason"] == "there is no silent.txt beside it"


def test_check_fails_where_nothing_is_left(run: Run, films: Path) -> None:
    result = run("data", "check", films, "--duration", "9")
    assert result.code == 1
    assert "lasts 2.40 s, less than the clip's 9 s" in result.out
    assert "\nnothing is left to train on; give --num-frames, --duration, " in result.out
    assert run("data", "check", films, "--duration", "9", "--short", "whole").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "source must be a file or folder that exists, got 'none'"),
        ([".", "--sample", "0"], "source must hold captioned video"),
        (["FILMS", "--sample", "0"], "--sample must be at least 1, got 0"),
        (["FILMS", "--sample", "3", "--all"], "--sample must be left out where --all is given, got 3"),
        (["FILMS", "--num-frames", "0"], "--num-frames must be valid"),
        (["FILMS", "--short", "stretch"], "--short must be valid"),
        (["FILMS", "--sheet", "sheet.mp4"], "--sheet must end in .png or .jpg, got 'sheet.mp4'"),
    ],
)
def test_check_refuses_in_one_line(refused: Refused, films: Path, arguments: list[str], message: str) -> None:
    assert refused("data", "check", *(str(films) if part == "FILMS" else part for part in arguments)).startswith(
        message
    )


def test_shapes_and_their_cache_which_a_recipe_then_finds(run: Run, road: Path, tmp_path: Path) -> None:
    shapes, cache = tmp_path / "shapes", tmp_path / "cache"
    assert run("data", "shapes", "-o", shapes, "--size", "16", "--num-frames", "4").out == f"{shapes}: 8 clips\n"
    clip = ("--num-frames", "4", "--size", "16", "--duration", "whole")
    model = road / "image/model"
    result = run("data", "cache", shapes, cache, "--model", model, "--device", "cpu", *clip)
    assert (result.code, result.out) == (0, f"{cache}: 8 records, 32 frames\n")
    (place,) = cache.iterdir()
    written = (place / "frames.npy").stat().st_mtime_ns
    recipe = Path("recipe.toml")
    recipe.write_text(
        f'stage = "video"\noutput = "run"\nsteps = 1\nbatch_size = 2\ndevice = "cpu"\n'
        f'[data]\nsource = "{shapes}"\ncache = "{cache}"\nnum_frames = 4\nsize = 16\nduration_s = "whole"\n'
        f'[model]\ninit = "{model}"\n',
        encoding="utf-8",
    )
    assert run("train", recipe).code == 0
    assert [entry.name for entry in cache.iterdir()] == [place.name]
    assert (place / "frames.npy").stat().st_mtime_ns == written
    # Other clips are another cache.
    assert run("data", "cache", shapes, cache, "--model", model, "--device", "cpu", *clip[:2], *clip[4:]).code == 0
    assert len(list(cache.iterdir())) == 2


def test_what_cannot_be_encoded_is_one_line(refused: Refused, run: Run, films: Path, road: Path) -> None:
    model = ("--model", road / "image/model", "--device", "cpu")
    assert refused("data", "cache", "nowhere", "c", *model).startswith("source must be a file or folder that")
    assert refused("data", "cache", films, "c", *model, "--duration", "long").startswith("--duration must be valid (")
    assert refused("data", "cache", films, "c", "--model", "nowhere").startswith("--model must be one of emoji or a ")
    too_long = run("data", "cache", films, "c", *model, "--size", "16", "--duration", "999")
    assert too_long.code == 2
    assert "error: 1 of 1 videos are bad, more than max_bad_share = 0.1: " in too_long.err
