"""The command line as a person meets it: help, versions, one-line errors, clips."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latent_shift.media import read_video


def command(*arguments, cwd=None):
    code = "from latent_shift.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ},
        check=False,
    )


def test_help_is_fast_and_loads_no_torch():
    code = "import sys; from latent_shift.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        assert result.returncode == 0, result.stderr
        assert all(verb in result.stdout for verb in ("generate", "train", "data"))
    assert min(seconds) < 0.4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "x", "--frames", "0"), ["--frames", "at least 1", "0"]),
        (("generate", "x", "--model", "nothing"), ["model", "nothing", "emoji"]),
        (("generate", "x", "--scheduler", "magic"), ["scheduler", "magic", "dpm++"]),
        (("generate", "x", "-o", "clip.xyz"), ["output", "clip.xyz", ".mp4"]),
        (("generate", "x", "-o", "/proc/no/clip.mp4"), ["output", "/proc/no/clip.mp4"]),
        (("generate", "x", "--size", "big"), ["--size", "big"]),
        (("generate",), ["prompt"]),
        (("train", "missing.toml"), ["recipe", "missing.toml"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, words, tmp_path):
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_of_a_recipe_names_the_nearest(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('stage = "image"\noutput = "run"\nsteps = 1\nbatch_sise = 1\n[data]\nfolder = "x"\n')
    result = command("train", str(recipe), cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'batch_size'" in result.stderr


def test_generate_writes_clips_with_their_settings(road, tmp_path):
    model = str(road / "video" / "model")
    arguments = ["--model", model, "--steps", "2", "--json", "--seed", "3", "--num-videos", "2", "--loop"]
    result = command("generate", "a red square", *arguments, "-o", "clip.webp", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    clips = json.loads(result.stdout)["clips"]
    assert [Path(clip["path"]).name for clip in clips] == ["clip_000.webp", "clip_001.webp"]
    video = read_video(tmp_path / "clip_001.webp")
    assert video.frames.shape == (4, 16, 16, 3)
    assert video.metadata["prompt"] == "a red square"
    assert video.metadata["seed"] == "4"
    assert video.metadata["loop"] == "True"
    assert video.metadata["version"].startswith("latent-shift ")


@pytest.mark.parametrize("recipe", sorted(Path(__file__).parents[2].glob("recipes/*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe):
    result = command("train", str(recipe), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["stage"] in ("autoencoder", "image", "video")
