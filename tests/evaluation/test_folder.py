from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_shift.core.errors import DataError, InputError
from latent_shift.evaluation import FolderOptions, evaluate_folder
from latent_shift.evaluation.folder import DEFAULT_METRICS, default_metrics
from latent_shift.media import read_video, write_video
from latent_shift.metrics import METRICS, ScoreOptions, flicker, frame_difference, kernel_distance, load_extractor
from latent_shift.metrics.clip_model import ClipViTB32
from latent_shift.metrics.extractors import FeatureInfo
from latent_shift.metrics.result import MetricResult
from latent_shift.metrics.stream import extract_features

from .numbered import FRAMES, clip, write_clips


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("folders")
    return write_clips(root / "generated", 3), write_clips(root / "real", 4)


def options(**changes: Any) -> FolderOptions:
    given: dict[str, Any] = {"frames": FRAMES, "score": ScoreOptions(resamples=5), **changes}
    return FolderOptions(**given)


def test_scores_are_those_of_the_functions(folders: tuple[Path, Path]) -> None:
    generated, real = folders
    results = {result.metric: result for result in evaluate_folder(generated, real, options(), device="cpu")}
    assert tuple(results) == DEFAULT_METRICS
    clips = [[read_video(path).frames for path in sorted(folder.iterdir())] for folder in folders]
    assert results["frame-difference"].value == pytest.approx(
        np.mean([frame_difference(c) for c in clips[0]]), rel=1e-6
    )
    assert results["flicker"].real_value == pytest.approx(np.mean([flicker(c) for c in clips[1]]), abs=1e-6)
    rows = [extract_features(load_extractor("lite0-clips"), side)[:, 0] for side in clips]
    assert results["lite0-clips-kd"].value == pytest.approx(kernel_distance(*rows), rel=1e-3, abs=1e-6)
    # One frame a clip, the middle one, goes into scores of frames.
    middles = [extract_features(load_extractor("lite0-frames"), [c[2:3] for c in side])[:, 0] for side in clips]
    assert results["lite0-frames-kd"].value == pytest.approx(kernel_distance(*middles), rel=1e-3, abs=1e-6)
    protocol = results["lite0-clips-kd"].protocol
    assert (protocol["generated_clips"], protocol["real_clips"], protocol["frames"]) == (3, 4, FRAMES)
    assert json.loads(json.dumps([result.to_json() for result in results.values()]))


def test_threads_and_batches_change_nothing(folders: tuple[Path, Path]) -> None:
    metrics = ("lite0-clips-kd", "flicker")
    one = evaluate_folder(*folders, options(metrics=metrics, threads=1, batch_size=1), device="cpu")
    many = evaluate_folder(*folders, options(metrics=metrics, threads=4, batch_size=2), device="cpu")
    for first, second in zip(one, many, strict=True):
        assert first.value == pytest.approx(second.value, rel=1e-3, abs=1e-5)
        assert first.protocol == second.protocol


def test_more_frames_of_a_clip_can_be_scored(folders: tuple[Path, Path]) -> None:
    (result,) = evaluate_folder(*folders, options(metrics=("lite0-frames-kd",), image_frames=3), device="cpu")
    assert result.protocol["rows_per_clip"] == 3


def test_stills_are_clips_of_one_frame(tmp_path: Path) -> None:
    for side in ("generated", "real"):
        write_clips(tmp_path / side, 4, ".png", frames=1)
    (result,) = evaluate_folder(
        tmp_path / "generated", tmp_path / "real", options(metrics=("lite0-frames-kd",), frames=1), device="cpu"
    )
    assert result.protocol["generated_clips"] == 4
    with pytest.raises(DataError, match="is a still image, and clips have 6 frames"):
        evaluate_folder(tmp_path / "generated", None, options(metrics=("flicker",)), device="cpu")
    with pytest.raises(DataError, match=r"frames in a folder are one clip where .* a video.json beside them says"):
        evaluate_folder(tmp_path / "generated", None, options(metrics=("flicker",)), device="cpu")


def test_a_part_of_a_loop_is_not_asked_whether_it_closes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    angles = np.arange(12) * 2 * np.pi / 12
    loop = np.zeros((12, 16, 16, 3), np.uint8)
    loop[:] = (127 + 120 * np.sin(angles)).astype(np.uint8)[:, None, None, None]
    for number in range(2):
        write_video(tmp_path / f"{number}.webp", loop, 8.0, lossless=True)
    whole = evaluate_folder(tmp_path, None, options(frames=12), device="cpu")
    assert [result.metric for result in whole] == list(DEFAULT_METRICS[2:])
    assert whole[2].value == 1
    assert whole[2].protocol["parts_of_files"] == {"generated": 0}
    assert caplog.text == ""
    parts = evaluate_folder(tmp_path, None, options(), device="cpu")
    assert [result.metric for result in parts] == list(DEFAULT_METRICS[2:4])
    assert "not in loop-seam: 2 of 2 files are longer than 6 frames" in caplog.text
    named = options(metrics=("flicker", "loop-seam"))
    with pytest.raises(InputError, match="frames must be as many as the files have for the metric loop-seam.*got 6"):
        evaluate_folder(tmp_path, None, named, device="cpu")
    write_video(tmp_path / "short.webp", clip(0), 8.0, lossless=True)
    (some,) = evaluate_folder(tmp_path, None, options(metrics=("loop-seam",)), device="cpu")
    assert (some.value, some.protocol["generated_clips"]) == (0, 1)
    assert some.protocol["parts_of_files"] == {"generated": 2}


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clips(tmp_path, 19)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (result,) = evaluate_folder(tmp_path, None, options(metrics=("flicker",)), device="cpu")
    assert (result.protocol["generated_clips"], result.protocol["left_out"]) == (19, 1)
    assert "left out" in caplog.text
    assert "broken.mp4" in caplog.text
    for number in range(4):
        write_video(tmp_path / f"short{number}.webp", clip(number, frames=3), 8.0, lossless=True)
    with pytest.raises(DataError, match=r"3 of 24 clips of .* cannot be used, more than 10%: .*broken.mp4"):
        evaluate_folder(tmp_path, None, options(metrics=("flicker",)), device="cpu")


def test_folders_behind_links_are_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for name, folder in zip("ab", folders, strict=True):
        (tmp_path / "all" / name).symlink_to(folder)
    (result,) = evaluate_folder(tmp_path / "all", None, options(metrics=("flicker",)), device="cpu")
    assert result.protocol["generated_clips"] == 7


def test_the_protocol_names_the_real_clips_and_all_sizes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def protocol(real: Path) -> dict[str, Any]:
        (result,) = evaluate_folder(folders[0], real, options(metrics=("lite0-clips-kd",)), device="cpu")
        return result.protocol

    first = protocol(folders[1])
    assert first["sizes"] == {"generated": {"16x16": 3}, "real": {"16x16": 4}}
    assert protocol(folders[1]) == first
    larger, others = write_clips(tmp_path / "larger", 4, size=32), write_clips(tmp_path / "others", 4)
    shutil.copy(folders[1] / "clip00.webp", others / "clip03.webp")
    assert protocol(larger)["sizes"]["real"] == {"32x32": 4}
    assert protocol(others)["real_files"] != first["real_files"]


def test_clips_of_any_size_together(tmp_path: Path) -> None:
    write_clips(tmp_path / "a", 2)
    write_clips(tmp_path / "b", 2, size=32)
    (result,) = evaluate_folder(tmp_path, None, options(metrics=("frame-difference",)), device="cpu")
    assert result.protocol["generated_clips"] == 4


def test_the_limit_draws_by_the_seed(tmp_path: Path) -> None:
    write_clips(tmp_path, 12)

    def value(seed: int) -> float:
        chosen = options(metrics=("lite0-frames-kd",), limit=3, score=ScoreOptions(resamples=0, seed=seed))
        (result,) = evaluate_folder(tmp_path, tmp_path, chosen, device="cpu")
        assert result.protocol["generated_clips"] == 3
        return result.value

    assert value(0) == value(0) != value(1)


@pytest.mark.parametrize(
    ("changes", "real", "message"),
    [
        ({"metrics": ("fdi",)}, True, "metric must be one of fid"),
        ({"metrics": ("lite0-clips-kd",)}, False, "real must be given for the metric lite0-clips-kd"),
        ({"metrics": ("fvd",)}, True, "weights must hold i3d_torchscript.pt: fetch https://"),
        ({"metrics": ("lite0-frames-fd",)}, True, "generated must have at least 1280 for .* use KID for less, got 3"),
        ({"metrics": ("flicker",), "frames": 1}, False, "frames must be at least 2 for the features motion"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_is_read(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], real: bool, message: str
) -> None:
    monkeypatch.setattr("latent_shift.evaluation.clip_files.read_window", lambda *_: pytest.fail("a clip was read"))
    with pytest.raises(InputError, match=message):
        evaluate_folder(folders[0], folders[1] if real else None, options(**changes), device="cpu")


def test_the_protocol_of_clipsim_names_the_sentences(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clip(ClipViTB32):
        """Looks at nothing."""

        def __init__(self) -> None:
            self.info = FeatureInfo("clip", "frame", 2, "none", "file.pt", "v1", "")

        def __call__(self, clips: torch.Tensor) -> torch.Tensor:
            return torch.ones(*clips.shape[:2], 2)

        def texts(self, sentences: Sequence[str]) -> torch.Tensor:
            return torch.ones(len(sentences), 2)

    monkeypatch.setattr("latent_shift.evaluation.folder.load_extractor", lambda *_: Clip())

    def score(folder: Path) -> MetricResult:
        (result,) = evaluate_folder(folder, None, options(metrics=("clipsim",)), device="cpu")
        return result

    other = Path(shutil.copytree(folders[0], tmp_path / "other"))
    assert score(other).protocol_hash == score(folders[0]).protocol_hash
    for number in range(3):
        (other / f"clip{number:02}.txt").write_text(f"another {number}")
    assert score(other).protocol_hash != score(folders[0]).protocol_hash
    assert len(score(other).protocol["captions_sha256"]) == 12


def test_folders_without_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="generated must hold videos or images"):
        evaluate_folder(tmp_path, None, options(metrics=("flicker",)))
    with pytest.raises(InputError, match="real must be a folder that exists"):
        evaluate_folder(write_clips(tmp_path / "a", 1), tmp_path / "b", options())


@pytest.mark.parametrize(
    "changes",
    [{"frames": 0}, {"threads": 0}, {"batch_size": 0}, {"limit": 0}, {"size": 0}, {"fps": 0.0}, {"image_frames": 7}],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        options(**changes)


def test_images_are_scored_by_what_needs_no_motion() -> None:
    assert default_metrics(1, has_real=True) == ("lite0-frames-kd",)
    assert default_metrics(16, has_real=True) == DEFAULT_METRICS
    assert default_metrics(16, has_real=False) == DEFAULT_METRICS[2:]
    with pytest.raises(InputError, match="real must be given for lite0-frames-kd"):
        default_metrics(1, has_real=False)


def test_the_defaults_need_no_download() -> None:
    assert all(METRICS[name].features in ("lite0-frames", "lite0-clips", "motion") for name in DEFAULT_METRICS)
