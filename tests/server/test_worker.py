"""Covers `latent_shift.server.worker` on a whole tiny model: batches, cancels, previews, failures."""

from __future__ import annotations

import io
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latent_shift import LatentShiftPipeline
from latent_shift.media import read_video, to_uint8
from latent_shift.pipelines import SCHEDULERS, load_preset, make_scheduler
from latent_shift.server.engine import VARIANTS, ClipRequest, Engine, Event, Failed, Finished, Progress, Started
from latent_shift.server.worker import LocalEngine, _decode, _jpeg

SIZE, NUM_FRAMES, STEPS = 64, 2, 4


def request(prompt: str = "a red heart", **changes: Any) -> ClipRequest:
    fields: dict[str, Any] = {
        "model": "tiny",
        "prompt": prompt,
        "negative_prompt": "",
        "seed": 1,
        "num_frames": NUM_FRAMES,
        "width": SIZE,
        "height": SIZE,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "scheduler": "dpm++",
        "loop": False,
        "fps": 8.0,
    }
    return ClipRequest(**{**fields, **changes})


@pytest.fixture(scope="module")
def pipeline() -> LatentShiftPipeline:
    return load_preset("tiny", "cpu", "fp32")


@dataclass
class Desk:
    """An engine, and what it reported. `at` is called with each event, in the engine's thread."""

    engine: LocalEngine
    folder: Path
    events: list[Event] = field(default_factory=list)
    at: Callable[[Event], None] = lambda _: None
    done: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def report(self, event: Event) -> None:
        self.events.append(event)
        self.at(event)
        if isinstance(event, Finished | Failed):
            self.done.release()

    def submit(self, job_id: str, **changes: Any) -> None:
        self.engine.submit(job_id, request(**changes), self.folder / job_id)

    def run(self, endings: int = 1) -> None:
        """Starts, and waits for so many jobs to end."""
        self.engine.start(self.report)
        for _ in range(endings):
            assert self.done.acquire(timeout=60), self.events
        self.engine.stop()

    def of(self, job_id: str) -> list[str]:
        return [type(event).__name__ for event in self.events if event.job_id == job_id]

    def still(self, job_id: str) -> np.ndarray:
        return read_video(self.folder / job_id / VARIANTS["thumbnail"]).frames[0]


MakeDesk = Callable[..., Desk]


@pytest.fixture
def make_desk(pipeline: LatentShiftPipeline, tmp_path: Path) -> Iterator[MakeDesk]:
    desks: list[Desk] = []

    def make(**options: Any) -> Desk:
        desks.append(Desk(LocalEngine("tiny", [pipeline], **options), tmp_path / str(len(desks))))
        return desks[-1]

    yield make
    assert not any(desk.engine.healthy() for desk in desks)


@pytest.fixture
def desk(make_desk: MakeDesk) -> Desk:
    return make_desk()


def rows_of(pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Into it go the clips of each pass of the U-Net; guidance doubles them."""
    rows: list[int] = []
    forward = pipeline.unet.forward

    def note(sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        rows.append(len(sample) // 2)
        return forward(sample, *arguments, **options)

    monkeypatch.setattr(pipeline.unet, "forward", note)
    return rows


def test_a_clip_is_the_one_that_the_pipeline_makes(desk: Desk, pipeline: LatentShiftPipeline) -> None:
    assert isinstance(desk.engine, Engine)
    prompt = 'é\n"\U0001f680"'
    desk.submit("one", prompt=prompt, loop=True, fps=4.0)
    desk.run()
    assert desk.of("one") == ["Started", *["Progress"] * STEPS, "Finished"]
    made: Any = pipeline(
        prompt,
        generator=[torch.Generator().manual_seed(1)],
        num_frames=NUM_FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        boundary="circular",
        output_type="np",
    )
    np.testing.assert_array_equal(desk.still("one"), to_uint8(made.frames[0])[0])
    clip = read_video(desk.folder / "one" / VARIANTS["video"])
    assert clip.frames.shape == (NUM_FRAMES, SIZE, SIZE, 3)
    assert clip.fps == 4
    assert {key: clip.metadata[key] for key in ("prompt", "seed", "loop", "model")} == {
        "prompt": prompt,
        "seed": "1",
        "loop": "True",
        "model": "tiny",
    }
    assert sorted(path.name for path in (desk.folder / "one").iterdir()) == sorted(VARIANTS.values())
    assert [path.name for path in desk.folder.iterdir()] == ["one"]


def test_previews_are_pictures_that_come_nearer_to_the_clip(
    desk: Desk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_shift.server.worker._PREVIEW_SECONDS", 0)
    monkeypatch.setattr("latent_shift.server.worker._PREVIEW_SHARE", 1e9)
    desk.submit("one", num_frames=1, num_inference_steps=8)
    desk.run()
    steps = [event for event in desk.events if isinstance(event, Progress)]
    assert [event.step for event in steps] == list(range(1, 9))
    *previews, last = [np.asarray(Image.open(io.BytesIO(event.preview or b"")), float) for event in steps]
    in_the_end = np.asarray(Image.open(io.BytesIO(_jpeg(desk.still("one")))), float)
    away = [np.abs(preview - in_the_end).mean() for preview in previews]
    assert away[5] < away[2] < away[0]
    assert np.abs(last - in_the_end).mean() < 0.1 * away[0]


def test_previews_are_rare_where_they_cost_much(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_shift.server.worker._PREVIEW_SHARE", 1e-9)
    desk.submit("one")
    desk.run()
    assert [event.preview is not None for event in desk.events if isinstance(event, Progress)] == [True] + [False] * 3


def test_jobs_that_fit_share_a_batch_and_the_oldest_goes_first(
    make_desk: MakeDesk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(pipeline, monkeypatch)
    desk = make_desk(max_batch=2)
    for job_id, changes in {
        "a": {"seed": 1},
        "other": {"num_inference_steps": 2},
        "b": {"seed": 2, "prompt": "a rocket", "negative_prompt": "red", "fps": 4.0},
        "c": {"seed": 3},
    }.items():
        desk.submit(job_id, **changes)
    desk.run(endings=4)
    assert rows == [2] * STEPS + [1] * 2 + [1] * STEPS
    assert [event.job_id for event in desk.events if isinstance(event, Finished)] == ["a", "b", "other", "c"]
    alone = make_desk()
    alone.submit("b", seed=2, prompt="a rocket", negative_prompt="red", fps=4.0)
    alone.run()
    assert np.abs(alone.still("b").astype(int) - desk.still("b")).max() <= 1


def test_a_cancelled_job_frees_the_device_within_a_step(
    desk: Desk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(pipeline, monkeypatch)

    def cancel(event: Event) -> None:
        if isinstance(event, Progress) and event.job_id == "long" and event.step == 2:
            desk.engine.cancel("long")
            desk.submit("next", num_inference_steps=1)

    desk.at = cancel
    desk.submit("long", num_inference_steps=50)
    desk.run()
    assert rows == [1] * 4  # three steps of the long one, one of the next
    assert desk.of("long") == ["Started", "Progress", "Progress"]
    assert desk.of("next") == ["Started", "Progress", "Finished"]
    assert [path.name for path in desk.folder.iterdir()] == ["next"]


@pytest.fixture
def no_previews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_shift.server.worker._Batch._previews", lambda _, clean: [None] * len(clean))


@pytest.mark.usefixtures("no_previews")
@pytest.mark.parametrize(("kept", "parts"), [("ab", [8, 8, 1, 8, 8, 1]), ("b", [8, 8, 8, 1])])
def test_a_job_that_is_cancelled_while_it_is_decoded_gives_way_to_the_next(
    kept: str, parts: list[int], desk: Desk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    decode = pipeline.decode_latents

    def note(latents: torch.Tensor) -> Any:
        seen.append(latents.shape[2])
        if "a" not in kept:
            desk.engine.cancel("a")
        return decode(latents)

    monkeypatch.setattr(pipeline, "decode_latents", note)
    for job_id in "ab":
        desk.submit(job_id, num_frames=17, num_inference_steps=1)
    desk.run(endings=len(kept))
    assert seen == parts
    assert [event.job_id for event in desk.events if isinstance(event, Finished | Failed)] == list(kept)
    assert sorted(path.name for path in desk.folder.iterdir()) == list(kept)


@pytest.mark.parametrize("at", list(VARIANTS.values()))
def test_a_job_that_is_cancelled_while_it_is_written_leaves_nothing(
    at: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def note(path: Path, *_: Any) -> None:
        written.append(path.name)
        path.touch()
        if path.name == at and "first" in str(path):
            desk.engine.cancel("first")

    monkeypatch.setattr("latent_shift.server.worker.write_video", note)
    desk.submit("first", num_inference_steps=1)
    desk.submit("next", num_inference_steps=2)
    desk.run()
    names = list(VARIANTS.values())
    assert written == [*names[: names.index(at) + 1], *names]
    assert desk.of("first") == ["Started", "Progress"]
    assert [path.name for path in desk.folder.iterdir()] == ["next"]


def test_stopping_while_a_clip_is_written_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def wait(path: Path, *_: Any) -> None:
        path.touch()
        begun.set()
        assert stopped.wait(60)

    monkeypatch.setattr("latent_shift.server.worker.write_video", wait)
    for job_id in "ab":
        desk.submit(job_id, num_inference_steps=1)
    desk.engine.start(desk.report)
    assert begun.wait(60)
    stop = threading.Thread(target=desk.engine.stop)
    stop.start()
    with desk.engine._changed:
        assert desk.engine._changed.wait_for(lambda: desk.engine._stopping, 60)
    stopped.set()
    stop.join(60)
    assert not any(isinstance(event, Finished | Failed) for event in desk.events)
    assert list(desk.folder.iterdir()) == []


def test_a_clip_in_parts_is_the_one_in_a_whole(pipeline: LatentShiftPipeline) -> None:
    shape = (1, pipeline.unet.config.in_channels, 19, *pipeline._latent_size(SIZE, SIZE))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    frames = _decode(pipeline, latents, lambda: None)
    np.testing.assert_array_equal(frames, to_uint8(pipeline.decode_latents(latents)[0]))


def test_a_waiting_job_that_is_cancelled_is_never_begun(desk: Desk) -> None:
    desk.submit("first")
    desk.submit("second", num_frames=1)
    desk.engine.cancel("first")
    desk.engine.cancel("unknown")
    desk.run()
    assert desk.of("first") == []


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "ddpm"])
def test_a_cancelled_job_leaves_its_batch_and_the_others_are_as_if_it_had_not_been(
    scheduler: str, make_desk: MakeDesk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(pipeline, monkeypatch)
    shared, alone = make_desk(), make_desk()

    def cancel(event: Event) -> None:
        if event.job_id == "b" and isinstance(event, Progress) and event.step == 2:
            shared.engine.cancel("b")

    shared.at = cancel
    for seed, job_id in enumerate("abc"):
        shared.submit(job_id, seed=seed, scheduler=scheduler)
    shared.run(endings=2)
    assert rows == [3, 3, 3, 2]
    assert shared.of("b") == ["Started", "Progress", "Progress"]
    alone.submit("c", seed=2, scheduler=scheduler)
    alone.run()
    assert np.abs(alone.still("c").astype(int) - shared.still("c")).max() <= 1


def test_stopping_ends_within_a_step_and_writes_nothing(desk: Desk) -> None:
    begun = threading.Event()
    desk.at = lambda event: begun.set() if isinstance(event, Progress) else None
    desk.submit("long", num_inference_steps=900)
    desk.submit("waits")
    desk.engine.start(desk.report)
    assert begun.wait(60)
    assert desk.engine.healthy()
    desk.engine.stop()
    steps = desk.of("long").count("Progress")
    assert 1 <= steps < 100
    assert desk.of("waits") == []
    assert not any(isinstance(event, Finished | Failed) for event in desk.events)
    assert not desk.folder.exists()


def test_a_batch_that_fails_is_tried_one_by_one(
    desk: Desk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encode = pipeline._encode

    def refuse(captions: list[str]) -> torch.Tensor:
        if "bad" in captions:
            raise RuntimeError("/secret/path is out of memory")
        return encode(captions)

    monkeypatch.setattr(pipeline, "_encode", refuse)
    for job_id, prompt in (("a", "good"), ("b", "bad"), ("c", "good")):
        desk.submit(job_id, prompt=prompt)
    desk.run(endings=3)
    endings = {event.job_id: event for event in desk.events if isinstance(event, Finished | Failed)}
    assert isinstance(endings["a"], Finished)
    assert isinstance(endings["c"], Finished)
    assert endings["b"] == Failed("b", "the clip could not be made (RuntimeError)")
    assert "/secret/path is out of memory" in caplog.text


def test_a_job_is_tried_alone_though_the_rest_of_its_failed_batch_was_cancelled(
    desk: Desk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = pipeline._encode

    def refuse(captions: list[str]) -> torch.Tensor:
        if len(captions) > 1:
            desk.engine.cancel("b")
            raise torch.OutOfMemoryError
        return encode(captions)

    monkeypatch.setattr(pipeline, "_encode", refuse)
    for job_id in "ab":
        desk.submit(job_id, num_inference_steps=1)
    desk.run()
    assert desk.of("a")[-1] == "Finished"
    assert not any(isinstance(event, Finished | Failed) for event in desk.events if event.job_id == "b")


def test_a_failed_batch_is_out_of_the_memory_before_its_jobs_are_tried_again(
    desk: Desk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = pipeline.unet.forward
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def fill(sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if len(sample) > 2:
            features = torch.zeros(1)
            held.append(weakref.ref(features))
            raise torch.OutOfMemoryError(f"no memory beside {features}")
        alive.append(any(tensor() is not None for tensor in held))
        return forward(sample, *arguments, **options)

    monkeypatch.setattr(pipeline, "guides_in_halves", True)
    monkeypatch.setattr(pipeline.unet, "forward", fill)
    for job_id in "abc":
        desk.submit(job_id, num_inference_steps=1)
    desk.run(endings=3)
    assert [desk.of(job_id)[-1] for job_id in "abc"] == ["Finished"] * 3
    assert (len(held), len(alive), any(alive)) == (1, 6, False)


@pytest.mark.usefixtures("no_previews")
def test_numbers_that_are_not_finite_are_no_clip(
    desk: Desk, pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = pipeline.decode_latents
    monkeypatch.setattr(pipeline, "decode_latents", lambda latents, *rest: decode(latents * float("nan"), *rest))
    desk.submit("one")
    desk.run()
    assert desk.of("one")[-1] == "Failed"
    assert not desk.folder.exists()


def test_two_devices_work_at_once(pipeline: LatentShiftPipeline, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=60)
    busy: list[int] = []
    second = load_preset("tiny", "cpu", "fp32")
    desk = Desk(LocalEngine("tiny", [pipeline, second], max_batch=1), tmp_path)

    def meet(event: Event) -> None:
        if isinstance(event, Started):
            both.wait()
            busy.append(desk.engine.busy())
            both.wait()

    desk.at = meet
    desk.submit("a")
    desk.submit("b")
    desk.run(endings=2)  # would break the barrier if one came after the other
    assert (busy, desk.engine.busy()) == ([2, 2], 0)
    assert desk.of("a")[-1] == desk.of("b")[-1] == "Finished"


def test_facts_are_the_models(desk: Desk, pipeline: LatentShiftPipeline) -> None:
    facts = desk.engine.facts
    assert (facts.num_frames, facts.width, facts.height, facts.size_factor) == (4, 64, 64, 64)
    assert (facts.guidance_scale, facts.fps, facts.max_steps, facts.loops) == (7.5, 8.0, 1000, False)
    assert facts.schedulers.keys() == SCHEDULERS.keys()
    for name in facts.schedulers:
        make_scheduler(name, pipeline.scheduler.config)


def test_a_fast_model_offers_the_solver_that_it_was_trained_for() -> None:
    pipeline = load_preset("tiny", "cpu", "fp32")
    pipeline.register_to_config(distilled_steps=4)
    facts = LocalEngine("tiny-fast", [pipeline], scheduler="ddim-trailing").facts
    assert (facts.scheduler, facts.schedulers) == ("ddim-trailing", {"ddim-trailing": 4})


def test_a_clip_is_on_the_disk_before_its_job_is_done(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[set[str]] = []
    monkeypatch.setattr("latent_shift.core.files._sync", lambda *paths: synced.append({path.name for path in paths}))
    desk.submit("one")
    desk.run()
    assert synced == [{"one", *VARIANTS.values()}, {desk.folder.name}]
