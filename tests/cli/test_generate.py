"""`latent-shift generate` with a tiny model: what it writes, what it prints, and that every option counts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latent_shift
from latent_shift import LatentShiftPipeline
from latent_shift.media import Video, read_video

from .conftest import Refused, Run

PROMPT = "a red square"
OPTIONS = ("--steps", "2", "--device", "cpu", "--dtype", "fp32")
SCHEDULERS = {"dpm++": 15, "unipc": 15, "euler": 25, "ddim": 50, "ddim-trailing": 4, "ddpm": 100}

Generate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the video stage; its last layer is made large, so that small changes show in bytes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline = LatentShiftPipeline.from_pretrained(road / "video/model", torch_dtype=torch.float32)
    with torch.no_grad():
        for parameter in pipeline.unet.conv_out.parameters():
            parameter *= 3
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def generate(run: Run, model: Path) -> Generate:
    """Runs the command with `--json` and gives what it printed."""

    def call(*arguments: str | Path) -> dict[str, Any]:
        result = run("generate", *OPTIONS, "--model", model, *arguments, "--json")
        assert result.code == 0, result.err
        printed: dict[str, Any] = json.loads(result.out)
        return printed

    return call


def clip(generate: Generate, *arguments: str | Path) -> Video:
    """The one clip of a command, lossless."""
    (made,) = generate(PROMPT, "-o", "clip/", *arguments)["clips"]
    return read_video(made["path"])


def direct(model: Path, seed: int = 0, prompt: str = PROMPT, **options: Any) -> np.ndarray:
    """The same clip by the pipeline, uint8."""
    pipeline = LatentShiftPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    result: Any = pipeline(prompt, num_inference_steps=2, generator=generator, output_type="np", **options)
    frames: np.ndarray = (np.asarray(result.frames)[0] * 255).round().astype(np.uint8)
    return frames


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.gif", "clip.webp", "clip.png", "clip.jpg", "clip/"])
def test_the_name_says_the_format_and_the_file_says_how_it_was_made(generate: Generate, name: str) -> None:
    printed = generate(PROMPT, "-o", name, "--seed", "7", "--negative", "blue", "--guidance", "3")
    video = read_video(name)
    sheet = name in ("clip.png", "clip.jpg")
    assert video.frames.shape == ((1, 34, 34, 3) if sheet else (4, 16, 16, 3))
    assert sheet or video.fps == 8
    assert video.metadata == {
        "prompt": PROMPT,
        "negative_prompt": "blue",
        "seed": "7",
        "model": "tiny",
        "scheduler": "dpm++",
        "steps": "2",
        "guidance_scale": "3.0",
        "motion_guidance": "1.0",
        "guidance_interval": "(0.0, 1.0)",
        "noise_correlation": "0.5",
        "loop": "False",
        "fast": "False",
        "version": f"latent-shift {latent_shift.__version__}",
    }
    assert printed["clips"][0]["path"] == name
    assert [path.name for path in Path().iterdir()] == [name.rstrip("/")]


def test_a_clip_is_what_the_pipeline_makes(generate: Generate, model: Path) -> None:
    assert (clip(generate, "--seed", "5").frames == direct(model, 5)).all()


def test_json_says_everything_that_was_made(generate: Generate, model: Path) -> None:
    printed = generate(PROMPT, "-o", "clip.webp", "--seed", "3")
    assert set(printed) == {"clips", "load_seconds"}
    assert printed["load_seconds"] > 0
    (made,) = printed["clips"]
    assert made.pop("seconds") > 0
    assert made == {
        "path": "clip.webp",
        "prompt": PROMPT,
        "negative_prompt": "",
        "seed": 3,
        "model": "tiny",
        "scheduler": "dpm++",
        "steps": 2,
        "guidance_scale": 4.0,
        "motion_guidance": 1.0,
        "guidance_interval": [0.0, 1.0],
        "noise_correlation": 0.5,
        "loop": False,
        "fast": False,
        "version": f"latent-shift {latent_shift.__version__}",
        "frames": 4,
        "height": 16,
        "width": 16,
        "fps": 8.0,
    }


def test_without_json_a_line_says_where_each_clip_is(run: Run, model: Path) -> None:
    result = run("generate", *OPTIONS, "--model", model, PROMPT, "blue", "-o", "clip.webp")
    lines = result.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("clip_000.webp: 4 frames in ")
    assert lines[1].startswith("clip_001.webp: 4 frames in ")
    assert lines[1].endswith(" s (seed 0)")
    assert result.err == ""


def test_a_terminal_shows_a_bar(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    result = run("generate", *OPTIONS, "--model", model, PROMPT, "-o", "clip.webp")
    assert "denoising: " in result.err
    assert "/2 [" in result.err  # tqdm draws no more often than ten times a second


def test_several_prompts_and_videos_get_numbers_and_seeds(generate: Generate, model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeff  green \n\n a still yellow square\n", encoding="utf-8")
    printed = generate("red", "blue", "--prompt-file", prompts, "--num-videos", "2", "--seed", "10", "-o", "out/")
    clips = printed["clips"]
    assert [made["path"] for made in clips] == [f"out_{number:03d}/" for number in range(8)]
    expected = ["red", "red", "blue", "blue", "green", "green", "a still yellow square", "a still yellow square"]
    assert [made["prompt"] for made in clips] == expected
    assert [made["seed"] for made in clips] == [10, 11] * 4
    assert len(list(Path().iterdir())) == 8
    # A clip does not depend on what was made before it.
    assert (read_video("out_003").frames == direct(model, 11, "blue")).all()
    assert read_video("out_005").metadata["prompt"] == "green"


def test_one_frame_is_an_image(generate: Generate, model: Path) -> None:
    (made,) = generate(PROMPT, "--frames", "1", "-o", "image.png")["clips"]
    assert made["frames"] == 1
    image = read_video("image.png")
    assert image.frames.shape == (1, 16, 16, 3)
    assert (image.frames == direct(model, num_frames=1)).all()


def test_frames_and_size_are_as_asked(generate: Generate) -> None:
    assert clip(generate, "--frames", "6").frames.shape == (6, 16, 16, 3)
    assert clip(generate, "--size", "32").frames.shape == (4, 32, 32, 3)
    assert clip(generate, "--size", "32x16").frames.shape == (4, 16, 32, 3)
    assert clip(generate, "--size", "16X32").frames.shape == (4, 32, 16, 3)


def test_a_loop_is_made_with_the_circular_shift(generate: Generate, model: Path) -> None:
    made = clip(generate, "--loop")
    assert made.metadata["loop"] == "True"
    assert (made.frames == direct(model, boundary="circular")).all()
    assert not (made.frames == direct(model)).all()


def test_fps_is_that_of_the_file(generate: Generate) -> None:
    assert clip(generate, "--fps", "12.5").fps == 12.5


@pytest.mark.parametrize(
    "option",
    [
        ("--seed", "1"),
        ("--seed", "-1"),
        ("--steps", "3"),
        ("--guidance", "1"),
        ("--guidance", "9"),
        ("--motion-guidance", "0.2"),
        ("--guidance-interval", "0.5", "1"),
        ("--noise-correlation", "0.9"),
        ("--negative", "a green square"),
        ("--dtype", "bf16"),
        ("--scheduler", "euler"),
    ],
)
def test_every_option_of_sampling_changes_the_clip(generate: Generate, model: Path, option: tuple[str, str]) -> None:
    assert not (clip(generate, *option).frames == direct(model)).all()


def test_guidance_of_zero_is_kept_and_off(generate: Generate) -> None:
    off = clip(generate, "--guidance", "0")
    assert off.metadata["guidance_scale"] == "0.0"
    assert (off.frames == clip(generate, "--guidance", "1").frames).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_have_names_and_usual_numbers_of_steps(run: Run, model: Path, name: str) -> None:
    arguments = ("--model", model, "--dtype", "fp32", "--frames", "2", "--scheduler", name, "--json")
    result = run("generate", PROMPT, "-o", "clip.png", *arguments)
    (made,) = json.loads(result.out)["clips"]
    assert (made["scheduler"], made["steps"]) == (name, SCHEDULERS[name])
    assert read_video("clip.png").metadata["scheduler"] == name


def test_a_model_that_was_saved_fast_is_sampled_so(run: Run, model: Path, tmp_path: Path) -> None:
    pipeline = LatentShiftPipeline.from_pretrained(model, distilled_steps=3, default_guidance_scale=1.0)
    pipeline.save_pretrained(tmp_path / "fast")
    arguments = ("generate", PROMPT, "--model", tmp_path / "fast", "--frames", "2", "-o", "clip.png", "--json")
    (made,) = json.loads(run(*arguments).out)["clips"]
    assert (made["fast"], made["scheduler"], made["steps"], made["guidance_scale"]) == (True, "ddim-trailing", 3, 1.0)
    assert "--scheduler must be ddim-trailing where the model is fast" in run(*arguments, "--scheduler", "dpm++").err


def test_an_older_file_of_the_name_is_replaced(generate: Generate) -> None:
    first = clip(generate).frames
    assert not (clip(generate, "--seed", "1").frames == first).all()
    assert [path.name for path in Path().iterdir()] == ["clip"]


def test_a_model_named_by_a_dot_has_the_name_of_its_folder(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    result = run("generate", PROMPT, *OPTIONS, "--model", ".", "-o", tmp_path / "clip.webp")
    assert result.code == 0
    assert read_video(tmp_path / "clip.webp").metadata["model"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "0"], "--frames must be at least 1, got 0"),
        (["--frames", "-3"], "--frames must be at least 1, got -3"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--steps", "2000"], "--steps must be at most 1000, the steps of training, got 2000"),
        (["--num-videos", "0"], "--num-videos must be at least 1, got 0"),
        (["--size", "100"], "--size must be a positive multiple of 16, got 100"),
        (["--size", "16x20"], "--size must be a positive multiple of 16, got 20"),
        (["--size", "0"], "--size must be a positive multiple of 16, got 0"),
        (["--size", "big"], "--size must be a number of pixels or WIDTHxHEIGHT, got 'big'"),
        (["--size", "-16"], "--size must be a number of pixels or WIDTHxHEIGHT, got '-16'"),
        (["--size", "16x16x16"], "--size must be a number of pixels or WIDTHxHEIGHT, got '16x16x16'"),
        (["--size", "²"], "--size must be a number of pixels or WIDTHxHEIGHT, got '²'"),
        (["--model", "nope"], "--model must be one of emoji or a folder with a model_index.json, got 'nope'"),
        (["--scheduler", "heun"], "--scheduler must be one of dpm++, unipc, ddim, euler, ddim-trailing, ddpm, got"),
        (["--fast", "--scheduler", "dpm++"], "--scheduler must be ddim-trailing where the model is fast: it was"),
        (["--fast"], "--fast must be for a model with a distilled difference (fast/pytorch_lora_weights.safetensors)"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda, cuda:N or mps, and be present, got 'tpu'"),
        (["--dtype", "fp8"], "--dtype must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        (["--fps", "0"], "--fps must be from 0.01 to 1000, got 0.0"),
        (["--fps", "nan"], "--fps must be from 0.01 to 1000, got nan"),
        (["--fps", "60", "-o", "clip.gif"], "--fps must be from 0.01 to 50, got 60.0"),
        (["--guidance", "nan"], "--guidance must be a number, got nan"),
        (["--guidance", "inf"], "--guidance must be a number, got inf"),
        (
            ["--guidance", "1", "--negative", "red"],
            "--negative must be left out where guidance is off (its",
        ),
        (["--motion-guidance", "-1"], "--motion-guidance must be in [0, 1], got -1.0"),
        (["--guidance-interval", "0.5", "0.2"], "--guidance-interval must be two shares of the steps, 0 <= start < "),
        (["--noise-correlation", "1"], "--noise-correlation must be in [0, 1), got 1.0"),
        (["--seed", str(2**64)], f"--seed must be a whole number of 64 bits, got {2**64}"),
        (["-o", "clip.avi"], "--output must end in one of .mp4 .webm .gif .webp .png .jpg or / (a folder of PNG"),
        (["-o", ""], "--output must end in one of"),
        (["-o", "/", "--num-videos", "2"], "--output must end in one of"),
        (["-o", "..", "--num-videos", "2"], "--output must end in one of"),
        (["-o", "/proc/no/clip.mp4"], "--output must be in a folder that can be written ("),
        (["--prompt-file", "missing.txt"], "--prompt-file must be a text file that can be read, got 'missing.txt'"),
        (["\udcff"], r"prompt must be UTF-8 text, got '\udcff'"),
        (["--negative", "\udcff"], r"--negative must be UTF-8 text, got '\udcff'"),
        ([""], "prompt must have a word, got ''"),
        ([" \n"], r"prompt must have a word, got ' \n'"),
    ],
)
def test_bad_input_is_one_line(refused: Refused, model: Path, arguments: list[str], message: str) -> None:
    given = () if "--model" in arguments else ("--model", model)
    assert refused("generate", PROMPT, *given, *arguments).startswith(message)


def test_a_prompt_is_needed(refused: Refused, model: Path, tmp_path: Path) -> None:
    expected = "prompt must be given, as an argument or in --prompt-file, got ''"
    assert refused("generate", "--model", model) == expected
    (tmp_path / "empty.txt").write_text("\n  \n")
    assert refused("generate", "--model", model, "--prompt-file", tmp_path / "empty.txt") == expected


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    message = refused("generate", PROMPT, "--model", "not even looked at", "-o", tmp_path / "file" / "clip.mp4")
    assert message.startswith("--output must be in a folder that can be written (")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    message = refused("generate", PROMPT, "--model", "not even looked at", "-o", f"{tmp_path / 'other'}/")
    assert message.startswith("--output must be new, empty or a folder of PNG frames; it holds other files")
    monkeypatch.setattr("os.access", lambda *_: False)
    message = refused("generate", PROMPT, "--model", "not even looked at", "-o", "clip.mp4")
    assert message.startswith("--output must be in a folder that can be written (")


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_corrupt_model_is_one_line_that_names_the_part(
    refused: Refused, model: Path, tmp_path: Path, file: str, damage: str
) -> None:
    shutil.copytree(model, tmp_path / "broken")
    path = tmp_path / "broken" / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    message = refused("generate", PROMPT, *OPTIONS, "--model", tmp_path / "broken")
    assert file.split("/")[0] in message


def test_a_corrupt_index_is_one_line(refused: Refused, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "broken")
    (tmp_path / "broken" / "model_index.json").write_text("{")
    message = refused("generate", PROMPT, "--model", tmp_path / "broken")
    assert message == f"--model must be a folder with a model_index.json, got {str(tmp_path / 'broken')!r}"


def test_a_failure_on_the_way_leaves_whole_clips_alone(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, made = LatentShiftPipeline.__call__, []

    def second_fails(self: LatentShiftPipeline, *args: Any, **kwargs: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(1)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(LatentShiftPipeline, "__call__", second_fails)
    result = run("generate", "red", "blue", *OPTIONS, "--model", model, "-o", "clip.webp")
    assert result.code == 130
    assert [path.name for path in Path().iterdir()] == ["clip_000.webp"]
    assert len(read_video("clip_000.webp").frames) == 4


def test_a_clip_that_is_not_of_numbers_is_refused_and_not_black(
    refused: Refused, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = LatentShiftPipeline.decode_latents
    monkeypatch.setattr(LatentShiftPipeline, "decode_latents", lambda self, z, *rest: decode(self, z * np.nan, *rest))
    expected = f"the clip of '{PROMPT}', seed 3, is not of finite numbers in float32; fp32 has more range"
    assert refused("generate", PROMPT, *OPTIONS, "--model", model, "--seed", "3", "-o", "clip.webp") == expected


def test_a_preset_is_a_model_with_random_weights(run: Run) -> None:
    result = run("generate", *OPTIONS, "red", "--preset", "tiny", "--steps", "1", "-o", "clip.webp", "--json")
    (made,) = json.loads(result.out)["clips"]
    assert (made["frames"], made["width"], made["height"], made["model"]) == (4, 64, 64, "tiny")
    both = run("generate", "red", "--preset", "tiny", "--model", "other")
    assert both.code == 2
    assert both.err == "latent-shift: error: --preset must be given without --model, got 'tiny'\n"
