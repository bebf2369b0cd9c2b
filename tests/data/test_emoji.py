from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from latent_shift.core.errors import DataError, InputError
from latent_shift.data import CaptionedVideoFolder, EmojiSummary, build_emoji, emoji, load_heldout
from latent_shift.data import _emoji_pictures as pictures
from latent_shift.data._emoji_source import PACKAGES
from latent_shift.data._emojibase import emoji_key, natural_label, tone_phrase
from latent_shift.data.records import CaptionedVideo

from .conftest import STILL_ONLY, asset, picture

Build = Callable[[], EmojiSummary]


def by_name(summary: EmojiSummary) -> dict[str, CaptionedVideo]:
    return {record.path.name + record.metadata["kind"]: record for record in CaptionedVideoFolder(summary.path)}


def count_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    def spy(job: pictures.PictureJob) -> str | None:
        made.append(job.name)
        return pictures.make_picture(job)

    monkeypatch.setattr(emoji, "make_picture", spy)
    return made


def test_writes_clips_and_stills(built: EmojiSummary) -> None:
    folder = CaptionedVideoFolder(built.path)
    clips = [record for record in folder if record.metadata["kind"] == "clip"]
    assert built.counts["clips"] == len(clips) == 14
    assert built.counts["stills"] == 15
    assert built.counts["records"] == len(folder) == 29
    assert built.dropped == []
    for record in folder:
        video = folder.read(record.index)
        clip = record.metadata["kind"] == "clip"
        assert video.frames.shape == (24 if clip else 1, 128, 128, 3)
        assert video.fps == (8 if clip else 1)
    assert {record.metadata["label"] for record in folder if record not in clips} > {STILL_ONLY}
    assert not list(built.path.rglob(".*"))


def test_records_say_what_they_are(built: EmojiSummary) -> None:
    record = by_name(built)["1f44b-1f3fd.webpclip"]
    assert record.caption == "waving hand, medium skin tone"
    assert record.captions[0] == record.caption
    assert 4 <= len(record.captions) <= 8
    assert all("medium skin tone" in caption for caption in record.captions)
    facts = record.metadata
    assert (facts["label"], facts["tone"], facts["family"]) == ("waving hand", "medium", "waving hand")
    assert (facts["hexcode"], facts["group"], facts["subgroup"]) == ("1F44B-1F3FD", "some", "thing")
    assert facts["licence"] == "MIT"
    assert facts["source"].startswith("@lobehub/fluent-emoji-anim-")
    assert facts["source_frames"] == 6
    assert by_name(built)["1f44b.webpclip"].metadata["tone"] is None


def test_the_manifest_credits_its_sources(built: EmojiSummary) -> None:
    manifest = CaptionedVideoFolder(built.path).manifest
    assert manifest["licence"] == "MIT"
    assert any("Microsoft" in credit for credit in manifest["credits"])
    assert [source["name"] for source in manifest["sources"]] == [package.name for package in PACKAGES]
    assert all(source["integrity"].startswith("sha512-") for source in manifest["sources"])
    assert manifest["heldout"] == {"name": load_heldout().name, "sha256": load_heldout().sha256}
    assert manifest["counts"] == built.counts


def test_takes_every_third_of_72_frames() -> None:
    frames = pictures.decode_loop(picture(200, 72), 24, "x")
    assert frames[:, 8, 8, 1].tolist() == [9 * index for index in range(24)]


def test_lays_transparency_on_white(built: EmojiSummary) -> None:
    folder = CaptionedVideoFolder(built.path)
    for record in folder:
        frames = folder.read(record.index).frames
        assert (frames[:, :8] == 255).all()
        assert (frames[:, 64, 64] != 255).any()


def test_a_complete_folder_is_left_alone(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build()
    monkeypatch.setattr(emoji, "find_package", None)
    assert build() == first


def test_goes_on_after_an_interruption(build: Build, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_made(monkeypatch)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "pictures" and done == 10:
            raise KeyboardInterrupt

    output = packages.parent / "emoji"
    with pytest.raises(KeyboardInterrupt):
        build_emoji(output, packages=packages, workers=1, progress=interrupt)
    assert not (output / "dataset.json").exists()
    assert not (output / "metadata.jsonl").exists()
    assert len(made) == 9
    assert build().counts["records"] == 29
    assert len(made) == len(set(made)) == 29


def test_the_manifest_is_written_last(build: Build, packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(emoji, "write_records", fail)
        with pytest.raises(OSError, match="disk full"):
            build()
    assert not (packages.parent / "emoji" / "dataset.json").exists()
    made = count_made(monkeypatch)
    assert build().counts["records"] == 29
    assert made == []


def test_a_truncated_result_is_made_again(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = build().path / "clips" / "1f44b.webp"
    whole = clip.read_bytes()
    clip.write_bytes(whole[:-10])
    made = count_made(monkeypatch)
    build()
    assert len(made) == 1
    assert clip.read_bytes() == whole


def test_a_change_makes_all_again(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    build()
    made = count_made(monkeypatch)
    monkeypatch.setattr(emoji, "_CAPTIONS_VERSION", 99)
    build()
    assert made == []
    monkeypatch.setattr(emoji, "_PICTURES_VERSION", 99)
    build()
    assert len(made) == 29


def test_what_cannot_be_read_is_named_and_counted(build: Build, packages: Path) -> None:
    animated = next(path for path in packages.glob("lobehub-fluent-emoji-anim-*/package/assets/1f927.webp"))
    animated.write_bytes(animated.read_bytes()[:-50])
    asset(packages, 0, "1f98d").write_bytes(b"RIFF\4\0\0\0WEBPVP8 \4\0\0\0junk")
    asset(packages, 0, "1f340").unlink()
    unlabelled = asset(packages, 0, "1f47d")
    unlabelled.write_bytes(picture(9))
    asset(packages, 1, "1f47d").write_bytes(picture(9))
    summary = build()
    reasons = {entry.file.split("/")[-1]: entry.reason for entry in summary.dropped}
    assert reasons.keys() == {"1f927.webp", "1f98d.webp", "1f340", "1f47d.webp"}
    assert "truncated: 50 bytes are missing" in reasons["1f927.webp"]
    assert "is corrupt" in reasons["1f98d.webp"]
    assert reasons["1f340"] == "missing from @lobehub/fluent-emoji-3d@1.1.0"
    assert reasons["1f47d.webp"] == "emojibase has no label for 1f47d"
    assert summary.counts["dropped"] == 4
    assert CaptionedVideoFolder(summary.path).manifest["dropped"][0].keys() == {"file", "reason"}
    assert summary.counts["records"] == 26


def test_the_same_emoji_twice_is_reported(build: Build, packages: Path) -> None:
    for index in (0, 1):
        asset(packages, index, "1f340-fe0f").write_bytes(picture(9))
    dropped = build().dropped
    assert [entry.reason for entry in dropped] == ["the same emoji as assets/1f340-fe0f.webp"]


def test_an_animation_read_as_one_frame_is_an_error(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Image.open

    def first_frame_only(file: object) -> Image.Image:
        return opened(file).convert("RGBA")  # type: ignore[arg-type]

    monkeypatch.setattr(pictures.Image, "open", first_frame_only)
    with pytest.raises(DataError, match=r"has 6 frames, but 1 can be read: Pillow lacks animated WebP"):
        build()


def test_swapped_skin_tones_of_stills_are_mended(build: Build, packages: Path) -> None:
    lighter, darker = asset(packages, 0, "1f44b-1f3fc"), asset(packages, 0, "1f44b-1f3fd")
    contents = lighter.read_bytes(), darker.read_bytes()
    darker.write_bytes(contents[0])
    lighter.write_bytes(contents[1])
    summary = build()
    assert summary.counts["mended_tones"] == 2
    folder, records = CaptionedVideoFolder(summary.path), by_name(summary)
    for name, tone, shade in (("1f3fc", "medium-light", 200), ("1f3fd", "medium", 150)):
        record = records[f"1f44b-{name}.webpstill"]
        assert record.metadata["tone"] == tone
        assert abs(int(folder.read(record.index).frames[0, 16, 16, 0]) - shade) <= 1


def test_stills_of_unknown_skin_tone_are_dropped(build: Build, packages: Path) -> None:
    asset(packages, 0, "1f44b-1f3ff").write_bytes(picture(255))
    dropped = build().dropped
    assert len(dropped) == 5
    assert all("skin tone cannot be told" in entry.reason and "1f44b-" in entry.file for entry in dropped)


def test_a_folder_of_somebody_else_is_refused(packages: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    (output / "clips").mkdir(parents=True)
    (output / "build.json").write_text("{}")
    for name in ("clips", "thesis.txt"):
        with pytest.raises(InputError, match="output must be empty or begun by this command"):
            build_emoji(output, packages=packages, workers=1)
        (output / name).exists() or (output / name).write_text("mine")
    assert (output / "thesis.txt").exists()
    with pytest.raises(InputError, match="output must be a folder"):
        build_emoji(output / "thesis.txt", packages=packages)
    with pytest.raises(InputError, match="workers must be at least 1"):
        build_emoji(tmp_path / "new", packages=packages, workers=0)


def test_several_processes_give_the_same(built: EmojiSummary, packages: Path, tmp_path: Path) -> None:
    summary = build_emoji(tmp_path / "emoji", packages=packages, workers=2)
    assert summary.counts == built.counts
    for name in ("metadata.jsonl", "clips/1f44b.webp", "stills/1f340.webp"):
        assert (summary.path / name).read_bytes() == (built.path / name).read_bytes()


@pytest.mark.slow
def test_workers_end_when_the_build_is_killed(packages: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom latent_shift.data import build_emoji\n"
        "def wait(what, done, total):\n    if done == 20:\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    build_emoji(Path(sys.argv[2]), packages=Path(sys.argv[1]), workers=2, progress=wait)\n"
    )
    command = [sys.executable, str(script), str(packages), str(tmp_path / "emoji")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert children
    deadline = time.monotonic() + 20
    while (alive := [child for child in children if _runs(int(child))]) and time.monotonic() < deadline:
        os.sched_yield()
    assert alive == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("label", "natural"),
    [
        ("waving hand", "waving hand"),
        ("man: bald", "bald man"),
        ("woman: red hair", "woman with red hair"),
        ("flag: Peru", "flag of Peru"),
        ("keycap: #", "keycap #"),
        ("couple with heart: woman, man", "couple with heart, woman and man"),
        ("family: man, girl, boy", "family, man, girl and boy"),
    ],
)
def test_labels_read_naturally(label: str, natural: str) -> None:
    assert natural_label(label) == natural


def test_two_tones_are_said_together() -> None:
    assert tone_phrase([]) == ""
    assert tone_phrase(["dark", "dark"]) == "dark skin tone"
    assert tone_phrase(["light", "medium-dark"]) == "light and medium-dark skin tones"


def test_code_points_match_in_any_spelling() -> None:
    assert emoji_key("0023-FE0F-20E3") == emoji_key("23-20e3") == "23-20e3"
    with pytest.raises(DataError, match="'cat-x' is no sequence of code points"):
        emoji_key("cat-x")
