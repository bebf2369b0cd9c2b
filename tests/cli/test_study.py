"""`latent-shift study`: from folders of clips to a report, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latent_shift.media import read_video, write_video
from latent_shift.study import Store

from .conftest import Refused, Run


def film(tone: int, frames: int = 5, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A bright square that moves over a picture that is not the same everywhere."""
    height, width = size
    ramp = np.broadcast_to(np.linspace(0, 200, width, dtype=np.uint8)[None, :, None], (height, width, 3))
    made = np.stack([ramp] * frames).copy()
    made[..., 2] = tone
    for index in range(frames):
        made[index, 8:24, 4 + 8 * index : 20 + 8 * index] = 255
    return made


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two systems in different formats, sizes and lengths; one has a clip that the other has not."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    for number, prompt in enumerate(("a red heart", "a rocket", "only ours")):
        write_video(
            tmp_path / "ours" / f"clip_{number:03d}.mp4", film(40 * number), 8, {"prompt": prompt, "model": "m"}
        )
    for number, prompt in enumerate(("a rocket", "a red heart")):
        facts = {"prompt": prompt, "model": "secret-model"}
        write_video(tmp_path / "theirs" / f"{number}.webp", film(200, 7, (32, 32)), 10, facts, lossless=True)
    return tmp_path


def test_create_and_report(run: Run, clips: Path) -> None:
    study = clips / "study"
    result = run("study", "create", study, clips / "ours", clips / "theirs", "--set", "raters_per_pair=3")
    assert (result.code, result.out) == (0, f"{study}: 2 pairs; 3 votes each take 3 raters or more\n")
    assert result.err == f"not paired: {clips}/ours/clip_002.mp4: no other system has a clip for 'only ours'\n"
    store = Store(study)
    assert (store.settings.raters_per_pair, store.quota) == (3, 2)
    pairs = {pair.prompt: (pair.first, pair.second) for pair in store.pairs() if pair.kind == "pair"}
    assert pairs == {"a red heart": ("ours", "theirs"), "a rocket": ("ours", "theirs")}
    store.close()
    result = run("study", "report", study)
    assert "0 raters gave 0 votes on 2 pairs; 0 pairs have all 3 votes." in result.out
    assert (study / "report" / "report.html").is_file()
    answer = json.loads(run("study", "report", study, "--json", "-o", clips / "elsewhere").out)
    assert answer["comparisons"][0]["pairs"] == 2
    assert (clips / "elsewhere" / "raters.csv").is_file()


def test_a_folder_may_have_an_equals_sign(run: Run, clips: Path) -> None:
    (clips / "ours").rename(clips / "lr=0.1")
    result = run("study", "create", clips / "study", clips / "lr=0.1", f"it={clips}/theirs")
    assert result.code == 0, result.err
    store = Store(clips / "study")
    assert {(pair.first, pair.second) for pair in store.pairs() if pair.kind == "pair"} == {("lr=0.1", "it")}
    store.close()


def test_sheets_hold_every_frame_and_no_metadata(run: Run, clips: Path) -> None:
    run("study", "create", clips / "study", clips / "ours", clips / "theirs")
    data = b"".join(path.read_bytes() for path in (clips / "study" / "clips").iterdir())
    assert b"secret-model" not in data
    assert b"rocket" not in data
    store = Store(clips / "study")
    token = store.join()
    item = store.state(token).item
    assert item is not None
    shown = [item.left, item.right]
    assert {(clip.frames, clip.fps) for clip in shown} <= {(5, 8.0), (7, 10.0)}
    whole = max(
        shown, key=lambda clip: store.train(token, dict.fromkeys(("quality", "faithfulness"), side_of(item, clip)))
    )
    with Image.open(store.files[whole.file_name(0)]) as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    # Also of the clips that pair with nothing: examples are made of those first.
    sources = [*sorted((clips / "ours").glob("*.mp4")), *sorted((clips / "theirs").iterdir())]
    errors = []
    for source in sources:
        frames = read_video(source).frames
        if frames.shape[:3] != (whole.frames, whole.height, whole.width):
            continue
        error = 0.0
        for index, frame in enumerate(frames):
            top = index // whole.columns * (whole.height + whole.gap)
            left = index % whole.columns * (whole.width + whole.gap)
            part = sheet[top : top + whole.height, left : left + whole.width]
            error = max(error, np.abs(part - frame).mean())
        errors.append(error)
    assert min(errors) < 6
    store.close()


def side_of(item: object, clip: object) -> str:
    return "left" if item.left == clip else "right"  # type: ignore[attr-defined]


def test_a_long_clip_takes_several_sheets_and_a_huge_one_is_refused(
    refused: Refused, run: Run, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latent_shift.cli import _study_clips

    monkeypatch.setattr(_study_clips, "_MAX_SHEET_PIXELS", 130 * 130)  # 2 x 2 frames of 64x48
    create = ("study", "create", clips / "study", clips / "ours", clips / "theirs")
    assert run(*create).code == 0
    assert any(path.name.endswith("-1.webp") for path in (clips / "study" / "clips").iterdir())
    store = Store(clips / "study")
    assert all(path.is_file() for path in store.files.values())
    store.close()
    monkeypatch.setattr(_study_clips, "_MAX_SHEET_PIXELS", 65 * 65)
    line = refused("study", "create", clips / "other", clips / "ours", clips / "theirs")
    assert line.endswith("must have at most 4 x 65x65 pixels in all frames together, got '5 frames of 64x48'")


def test_what_is_refused(refused: Refused, clips: Path) -> None:
    two = (clips / "ours", clips / "theirs")
    new = clips / "new"
    assert refused("study", "create", new, two[0]).startswith("folders must be two or more")
    assert refused("study", "create", new, *two, two[0]).startswith("systems must have a name of its own")
    assert refused("study", "create", new, *two, "=x").startswith("systems must have a name of its own")
    assert refused("study", "create", new, *two, "--baseline", "x").startswith("--baseline must be one of ours, theirs")
    assert refused("study", "create", new, *two, "--set", "rater_per_pair=3").endswith(
        "did you mean 'raters_per_pair'?, got 'rater_per_pair'"
    )
    assert refused("study", "create", new, *two, "--set", "raters_per_pair=0").startswith(
        "raters_per_pair must be valid"
    )
    assert refused("study", "create", new, *two, "--settings", clips / "no.toml").startswith(
        "--settings must be a TOML file"
    )
    assert refused("study", "create", clips / "ours", *two).startswith("study must be new")
    assert refused("study", "create", new, clips / "none", two[0]).startswith("folder must be a folder of clips")
    for command in ("serve", "report"):
        assert refused("study", command, new).startswith("study must be a folder made by `latent-shift study create`")
    assert refused("study", "report", new, "--min-attention", "2").startswith("--min-attention must be from 0 to 1")


def test_serve_refuses_a_wrong_port(run: Run, clips: Path) -> None:
    run("study", "create", clips / "study", clips / "ours", clips / "theirs")
    result = run("study", "serve", clips / "study", "--port", "65536")
    assert (result.code, result.err) == (2, "latent-shift: error: --port must be from 0 to 65535, got 65536\n")


def test_without_the_extra_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "latent_shift.study.app", raising=False)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = run("study", "serve", "x")
    assert result.code == 1
    assert result.err == "latent-shift: error: fastapi is not installed; run: pip install 'latent-shift[study]'\n"


def test_create_never_loads_torch(clips: Path) -> None:
    code = "import sys; from latent_shift.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules\n"
    arguments = ["study", "create", str(clips / "study"), str(clips / "ours"), str(clips / "theirs")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
