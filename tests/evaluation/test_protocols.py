"""MSR-VTT and UCF-101 laid out as their authors do, with tiny videos, and the model that the road test trains."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from latent_shift.core.errors import DataError, InputError
from latent_shift.data import ucf101_sentences
from latent_shift.evaluation import ProtocolOptions, evaluate_protocol, msrvtt, samples, score_protocol, ucf101
from latent_shift.evaluation.protocols import Protocol
from latent_shift.media import read_video, write_video

FREE = ("lite0-frames-kd", "lite0-clips-kd", "flicker")
OPTIONS: dict[str, Any] = {"steps": 1, "metrics": FREE}


def write_real(path: Path, number: int) -> None:
    frames = np.random.default_rng(number).integers(0, 256, (12, 24, 24, 3), dtype=np.uint8)
    write_video(path, frames, fps=8.0)


@pytest.fixture(scope="module")
def msrvtt_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four test videos of three captions, one train video, and a test video whose file is missing."""
    folder = tmp_path_factory.mktemp("msrvtt")
    videos = [{"video_id": f"video{n}", "split": "train" if n == 0 else "test"} for n in range(6)]
    sentences = [{"video_id": v["video_id"], "caption": f"a thing {v['video_id']} {n}"} for v in videos for n in "xyz"]
    (folder / "test_videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    for number in range(5):
        write_real(folder / f"videos/video{number}.mp4", number)
    return folder


@pytest.fixture(scope="module")
def ucf101_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; in the train split of 6, 3 and 1 clips, besides one test clip each."""
    folder = tmp_path_factory.mktemp("ucf")
    train, test = [], []
    for label, count in {"Archery": 6, "Biking": 3, "Drumming": 1}.items():
        for number in range(count + 1):
            name = f"{label}/v_{label}_g{number:02}_c01.avi"
            (test if number == count else train).append(name)
            write_real(folder / "UCF-101" / name.replace(".avi", ".mp4"), number)
            (folder / "UCF-101" / name.replace(".avi", ".mp4")).rename(folder / "UCF-101" / name)
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("".join(f"{name} 1\n" for name in train))
    (lists / "testlist01.txt").write_text("".join(f"{name}\n" for name in test))
    return folder


def evaluate(protocol: Protocol, road: Path, output: Path, **changes: Any) -> Any:
    options = ProtocolOptions(**{**OPTIONS, **changes})
    return evaluate_protocol(protocol, str(road / "video/model"), output, options, device="cpu", dtype="fp32")


def test_msrvtt_asks_for_every_caption_of_the_test_split(msrvtt_data: Path) -> None:
    protocol = msrvtt(str(msrvtt_data))
    assert [request.prompt for request in protocol.requests] == [
        f"a thing video{video} {word}" for video in (1, 2, 3, 4, 5) for word in "xyz"
    ]
    assert len({request.seed for request in protocol.requests}) == 15
    assert [path.name for path in protocol.real] == [f"video{video}.mp4" for video in (1, 2, 3, 4)]
    assert protocol.facts == {"captions": "all", "missing_videos": 1}
    assert protocol.metrics == ("fid", "fid-clip", "clipsim")


def test_one_caption_of_each_video_is_drawn_with_the_seed(msrvtt_data: Path) -> None:
    everything = set(msrvtt(str(msrvtt_data)).requests)
    drawn = msrvtt(str(msrvtt_data), "one").requests
    assert set(drawn) < everything  # the same clips: both profiles share them
    assert [request.prompt.split()[2] for request in drawn] == [f"video{video}" for video in (1, 2, 3, 4, 5)]
    assert drawn == msrvtt(f"msrvtt:{msrvtt_data}", "one").requests
    words = {tuple(one.prompt[-1] for one in msrvtt(str(msrvtt_data), "one", seed).requests) for seed in range(8)}
    assert len(words) > 2
    first, other = (msrvtt(str(msrvtt_data), seed=seed).requests[0] for seed in (0, 1))
    assert first.seed != other.seed
    assert first.file_name != other.file_name


def test_what_is_asked_for_does_not_depend_on_the_videos_that_are_there(
    msrvtt_data: Path, ucf101_data: Path, road: Path, tmp_path: Path
) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(msrvtt_data / "test_videodatainfo.json", tmp_path / "alone")
    for captions in ("all", "one"):
        whole, alone = (msrvtt(str(folder), captions) for folder in (msrvtt_data, tmp_path / "alone"))
        assert alone.requests == whole.requests
        assert (len(whole.real), alone.real) == (4, [])
    made = evaluate(alone, road, tmp_path / "clips", part=(2, 5))
    assert (made.made, made.wanted) == (1, 5)
    with pytest.raises(InputError, match="data must hold the real ones for the metric lite0-frames-kd, got 'no video"):
        evaluate(alone, road, tmp_path / "clips")
    (done,) = evaluate(alone, road, tmp_path / "clips", metrics=("flicker",)).results
    assert (done.protocol["generated_clips"], done.real_value) == (5, None)
    some = Path(shutil.copytree(ucf101_data, tmp_path / "ucf"))
    for path in sorted((some / "UCF-101/Archery").iterdir())[1:]:
        path.unlink()
    whole, fewer = (ucf101(str(folder), samples=20) for folder in (ucf101_data, some))
    assert fewer.requests == whole.requests
    assert (len(fewer.real), len(whole.real)) == (5, 10)


def test_clips_of_no_numbers_are_not_kept(msrvtt_data: Path, road: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(road / "video/model", tmp_path / "model"))
    (file,) = (model / "unet").glob("*.safetensors")
    weights = load_file(file)
    save_file({**weights, "conv_out.bias": weights["conv_out.bias"] * float("nan")}, file, {"format": "pt"})
    protocol, options = msrvtt(str(msrvtt_data), "one"), ProtocolOptions(**OPTIONS, part=(1, 5))
    with pytest.raises(
        DataError, match=r"the clip of 'a thing video1 .', seed \d+, is not of finite numbers in float32"
    ):
        evaluate_protocol(protocol, str(model), tmp_path / "clips", options, device="cpu", dtype="fp32")
    assert not list(tmp_path.rglob("*.webp"))


def test_ucf101_asks_as_often_as_the_train_split_has_a_class(ucf101_data: Path) -> None:
    protocol = ucf101(str(ucf101_data), samples=20)
    assert Counter(request.file_name.split("/")[1] for request in protocol.requests) == {
        "Archery": 12,
        "Biking": 6,
        "Drumming": 2,
    }
    sentences = ucf101_sentences()
    assert {request.prompt for request in protocol.requests} == {
        sentences[label] for label in ("Archery", "Biking", "Drumming")
    }
    assert len({request.seed for request in protocol.requests}) == 20
    assert len(protocol.real) == 10
    for count in (1, 7, 11):
        assert len(ucf101(str(ucf101_data), samples=count).requests) == count
    assert {request.prompt for request in ucf101(str(ucf101_data), samples=1).requests} == {sentences["Archery"]}
    assert protocol.metrics == ("is", "fvd")


def test_a_model_without_a_size_of_its_own_has_its_networks(msrvtt_data: Path, road: Path, tmp_path: Path) -> None:
    for name in ("own", "none"):
        shutil.copytree(road / "video/model", tmp_path / name, symlinks=True)
    place = tmp_path / "none/model_index.json"
    config = json.loads(place.read_text())
    size = config.pop("default_size")
    place.write_text(json.dumps(config))
    protocol, options = msrvtt(str(msrvtt_data), "one"), ProtocolOptions(**OPTIONS)

    def sizes(name: str) -> dict[str, Any]:
        model = str(tmp_path / name)
        done = evaluate_protocol(protocol, model, tmp_path / "clips", options, device="cpu", dtype="fp32")
        return done.results[0].protocol["sizes"]

    assert (
        sizes("none")
        == sizes("own")
        == {side: {f"{size}x{size}": count} for side, count in (("generated", 5), ("real", 4))}
    )
    unet = tmp_path / "none/unet/config.json"
    unet.write_text(json.dumps({**json.loads(unet.read_text()), "sample_size": [1, 2]}))
    with pytest.raises(InputError, match="model must make square clips, as real ones are cropped"):
        sizes("none")


def test_parts_make_what_one_run_makes(
    msrvtt_data: Path, road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = msrvtt(str(msrvtt_data), "one")
    for number, made in ((1, 3), (2, 5)):
        part = evaluate(protocol, road, tmp_path / "parts", part=(number, 2))
        assert (part.made, part.wanted, part.results) == (made, 5, [])
    whole = evaluate(protocol, road, tmp_path / "whole")
    assert (whole.made, whole.wanted) == (5, 5)
    for request in protocol.requests:
        path = whole.folder / request.file_name
        assert path.read_bytes() == (tmp_path / "parts" / whole.folder.name / request.file_name).read_bytes()
        assert read_video(path).metadata["prompt"] == request.prompt
    # All is there now: the scores come without a clip made, and are the same.
    monkeypatch.setattr(samples.SampleStore, "_make", lambda *_: pytest.fail("a clip was made again"))
    again = evaluate(protocol, road, tmp_path / "parts")
    assert [(result.metric, result.value) for result in again.results] == [
        (result.metric, result.value) for result in whole.results
    ]
    assert [result.metric for result in again.results] == list(FREE)
    facts = again.results[0].protocol
    assert (facts["asked"], facts["captions"], facts["generated_clips"], facts["real_clips"]) == (
        "msrvtt",
        "one",
        5,
        4,
    )
    assert facts["missing_videos"] == 1
    assert (whole.settings["scheduler"], whole.settings["steps"]) == ("dpm++", 1)


def test_ucf101_is_scored_against_the_train_split(ucf101_data: Path, road: Path, tmp_path: Path) -> None:
    done = evaluate(ucf101(str(ucf101_data), samples=5), road, tmp_path, batch_size=2, scheduler="ddpm", steps=2)
    assert (done.made, len(done.results)) == (5, 3)
    assert (done.results[1].protocol["real_clips"], done.settings["scheduler"]) == (10, "ddpm")
    other = evaluate(ucf101(str(ucf101_data), samples=5), road, tmp_path, batch_size=2, steps=1)
    assert other.folder != done.folder
    # What is measured is the same, however the clips were made.
    assert [one.protocol_hash for one in other.results] == [one.protocol_hash for one in done.results]


def test_other_sentences_are_other_clips(msrvtt_data: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(msrvtt_data, changed)
    table = changed / "test_videodatainfo.json"
    table.write_text(table.read_text().replace("a thing video2 y", "another thing"))
    before, after = (msrvtt(str(folder)).requests for folder in (msrvtt_data, changed))
    assert [one.seed for one in before] == [one.seed for one in after]
    moved = [(one.prompt, other.prompt) for one, other in zip(before, after, strict=True) if one != other]
    assert moved == [("a thing video2 y", "another thing")]
    assert {one.file_name for one in before}.isdisjoint(one.file_name for one in after if one.prompt == "another thing")


def test_anybodys_clips_are_scored_as_those_of_a_model(
    ucf101_data: Path, road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = ucf101(str(ucf101_data), samples=5)
    ours = evaluate(protocol, road, tmp_path)
    monkeypatch.setattr("latent_shift.evaluation.protocols.load_pipeline", None)
    theirs = score_protocol(protocol, shutil.copytree(ours.folder, tmp_path / "theirs"), FREE, device="cpu")
    assert (theirs.made, theirs.wanted, theirs.settings) == (5, 5, {})
    for one, other in zip(ours.results, theirs.results, strict=True):
        assert (one.metric, one.value, one.real_value) == (other.metric, other.value, other.real_value)
        asked = one.protocol.pop("requests_sha256")  # what theirs were asked for nobody knows
        assert asked
        assert one.protocol == other.protocol
    (tmp_path / "theirs/0.webp").write_bytes(b"no video")  # the first one
    for number in range(9):
        shutil.copy(next((tmp_path / "theirs").rglob("0000-*.webp")), tmp_path / f"theirs/more{number}.webp")
    more = score_protocol(protocol, tmp_path / "theirs", ("flicker",), device="cpu", resamples=0).results[0]
    assert (more.protocol["left_out"], more.interval) == (1, None)
    asked = dataclasses.replace(protocol, facts={"captions": "all", "missing_videos": 1})
    facts = score_protocol(asked, ours.folder, ("flicker",), device="cpu").results[0].protocol
    assert ("captions" in facts, facts["missing_videos"]) == (False, 1)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/0.webp").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"none of 1 clips can be read: .*0.webp"):
        score_protocol(protocol, tmp_path / "damaged", ("flicker",))
    write_video(tmp_path / "stills/0.png", np.zeros((1, 8, 8, 3), np.uint8), 8.0)
    with pytest.raises(InputError, match=r"clips must hold videos; .*0.png is a still image"):
        score_protocol(protocol, tmp_path / "stills", FREE)


def test_of_longer_clips_the_papers_frames_are_taken(ucf101_data: Path, tmp_path: Path) -> None:
    """16, of which four go into scores of frames."""
    for number in range(3):
        write_video(tmp_path / f"{number}.webp", np.full((20, 16, 16, 3), 90 * number, np.uint8), 8.0)
    protocol = dataclasses.replace(ucf101(str(ucf101_data), samples=3), real=sorted(tmp_path.glob("*.webp")))
    (score,) = score_protocol(protocol, tmp_path, ("lite0-frames-kd",), device="cpu", resamples=0).results
    assert (score.protocol["frames"], score.protocol["rows_per_clip"]) == (16, 4)


def test_clips_of_another_arithmetic_are_not_made_again_unasked(msrvtt_data: Path, road: Path, tmp_path: Path) -> None:
    protocol, options = msrvtt(str(msrvtt_data), "one"), ProtocolOptions(**OPTIONS, part=(1, 2))
    model = str(road / "video/model")
    elsewhere = evaluate_protocol(protocol, model, tmp_path, options, device="cpu", dtype="bf16")
    settings = elsewhere.folder / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "dtype": "float16"}))
    shutil.move(elsewhere.folder, tmp_path / "clips-of-a-gpu")
    with pytest.raises(
        InputError, match="dtype must be 'float16', in which .*clips-of-a-gpu was made, or '.*', got 'auto'"
    ):
        evaluate_protocol(protocol, model, tmp_path, options, device="cpu")
    assert evaluate_protocol(protocol, model, tmp_path, options, device="cpu", dtype="fp32").made == 3


def test_what_is_missing_is_said_before_a_clip_is_made(
    ucf101_data: Path, msrvtt_data: Path, road: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="weights must hold conv3d_deepnetA_ucf.npz: fetch"):
        evaluate(ucf101(str(ucf101_data), samples=2), road, tmp_path, metrics=None)
    with pytest.raises(InputError, match="use KID for less"):
        evaluate(msrvtt(str(msrvtt_data)), road, tmp_path, metrics=("lite0-frames-fd",))
    assert not list(tmp_path.rglob("*.webp"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"scheduler": "plms"}, "scheduler must be one of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"part": (3, 2)}, "part must be NUMBER/OF, the number from 1 to OF, got '3/2'"),
        ({"part": (0, 2)}, "part must be NUMBER/OF"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"resamples": 1}, "resamples must be at least 2"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        ProtocolOptions(**options)


@pytest.mark.usefixtures("as_users_run")
def test_other_data_is_refused(msrvtt_data: Path, ucf101_data: Path) -> None:
    with pytest.raises(InputError, match="data must be MSR-VTT's JSON"):
        msrvtt(str(ucf101_data))
    with pytest.raises(InputError, match="data must hold the class folders of UCF-101"):
        ucf101(str(msrvtt_data))
    with pytest.raises(InputError, match="captions must be all or one"):
        msrvtt(str(msrvtt_data), "two")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="samples must be at least 1"):
        ucf101(str(ucf101_data), samples=0)


def test_images_are_frozen_videos(msrvtt_data: Path, road: Path, tmp_path: Path) -> None:
    protocol = msrvtt(str(msrvtt_data), "one")
    done = evaluate(protocol, road, tmp_path, frames=1, metrics=("lite0-frames-kd",))
    assert (done.settings["frames"], done.made) == (1, 5)
    assert {len(read_video(path).frames) for path in done.folder.rglob("*.webp")} == {1}
    (score,) = done.results
    assert score.protocol["frames"] == 1
