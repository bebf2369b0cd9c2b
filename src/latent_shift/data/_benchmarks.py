"""UCF-101 and MSR-VTT, as their authors lay them out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from latent_shift.core.errors import DataError, InputError

from ._collect import CollectedSource, caption_texts, is_media

UCF101_SPLITS = ("all", *(f"{part}{fold}" for fold in ("", 1, 2, 3) for part in ("train", "test")))
MSRVTT_SPLITS = ("all", "train", "validate", "test")
_MSRVTT_FOLDERS = ("", "videos", "videos/all", "all", "TrainValVideo", "TestVideo")
_MSRVTT_METADATA: tuple[str, ...] = ("video_id", "category", "split")


def ucf101_sentences() -> dict[str, str]:
    """The sentence of each of the 101 classes of UCF-101.

    The paper has "templated sentences for each class" (Sec. 4.2) and does not list them. These follow one rule, "a
    person is", the act of the class as a verb, and its object; eight say who else it is where it is no single person
    (a baby, a band, soldiers, people).
    """
    text = resources.files("latent_shift.data").joinpath("ucf101.json").read_text(encoding="utf-8")
    sentences: dict[str, str] = json.loads(text)
    return sentences


def read_ucf101(path: Path, options: Mapping[str, str], argument: str) -> CollectedSource:
    """UCF-101: a folder for each class, `ClassName/v_ClassName_g01_c01.avi`, captioned by `ucf101_sentences`.

    Option `split`: `all`, as the paper trains (train and test together); `train`, on which it evaluates, or `test`, of
    the first official fold; `train1` to `train3`, `test1` to `test3`. Their lists are looked for in `ucfTrainTestlist`
    in the folder or beside it.
    """
    split = _choose(options.get("split", "all"), UCF101_SPLITS)
    root = ucf101_root(path)
    if root is None:
        raise InputError(argument, str(path), "hold the class folders of UCF-101 (ApplyEyeMakeup, ...)")
    sentences = ucf101_sentences()
    source = CollectedSource("ucf101", path)
    if split == "all":
        for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
            if folder.name not in sentences and folder.name != "ucfTrainTestlist":
                source.drop(folder, "the folder is no class of UCF-101")
        names = sorted(
            f"{label}/{file.name}"
            for label in sentences
            if (root / label).is_dir()
            for file in (root / label).iterdir()
            if is_media(file)
        )
    else:
        names = _ucf101_list(path, split, argument)
    for name in names:
        label = name.partition("/")[0]
        source.add(root / name, [sentences.get(label)], {"label": label})
    return source


def ucf101_root(path: Path) -> Path | None:
    """The folder that holds the class folders: `path` or its `UCF-101`; None if neither does."""
    sentences = ucf101_sentences()
    for root in (path, path / "UCF-101"):
        if root.is_dir() and any(entry.name in sentences and entry.is_dir() for entry in root.iterdir()):
            return root
    return None


def ucf101_classes(path: Path, split: str) -> Counter[str]:
    """How many clips the official list of a split has of each class of UCF-101, whether they are there or not.

    Raises:
        InputError: the list is not there.
    """
    known = ucf101_sentences()
    labels = (name.partition("/")[0] for name in _ucf101_list(path, split, "data"))
    return Counter(label for label in labels if label in known)


def _ucf101_list(path: Path, split: str, argument: str) -> list[str]:
    part, fold = split.rstrip("123"), split[-1] if split[-1].isdigit() else "1"
    name = f"{part}list0{fold}.txt"
    for folder in (path, path / "ucfTrainTestlist", path.parent / "ucfTrainTestlist", path.parent):
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
            return [line.split()[0] for line in lines if line.strip()]
    raise InputError(argument, str(path), f"have {name} in it or in ucfTrainTestlist beside it, for the split {split}")


def read_msrvtt(path: Path, options: Mapping[str, str], argument: str) -> CollectedSource:
    """MSR-VTT: its JSON (`videos` and `sentences`) and `video0.mp4`, ...; about 20 captions a video.

    The official test split, `test_videodatainfo.json`, has 2,990 videos and 59,794 captions; the paper uses all.
    Option `split`: `all` (of what the JSON has), `train`, `validate` or `test`. Option `root`: the videos' folder;
    otherwise they are looked for beside the JSON and in `videos`, `videos/all`, `TrainValVideo` and `TestVideo` there.
    """
    split = _choose(options.get("split", "all"), MSRVTT_SPLITS)
    table = msrvtt_json(path)
    if table is None:
        raise InputError(argument, str(path), "be MSR-VTT's JSON or hold just one *videodatainfo*.json")
    content = _msrvtt_content(table)
    folders = [Path(options["root"])] if "root" in options else [table.parent / name for name in _MSRVTT_FOLDERS]
    files = {file.stem: file for folder in folders if folder.is_dir() for file in folder.iterdir() if is_media(file)}
    captions = _captions(content, split)
    source = CollectedSource("msrvtt", table)
    for video in content["videos"]:
        name = video["video_id"]
        if name in captions:
            metadata = {key: video[key] for key in _MSRVTT_METADATA if key in video}
            source.add(files.get(name, folders[0] / f"{name}.mp4"), captions[name], metadata)
    return source


def msrvtt_captions(table: Path, split: str) -> dict[str, list[str]]:
    """The captions of each video of a split in MSR-VTT's JSON, whether its file is there or not.

    Raises:
        InputError: there is no such split.
        DataError: the JSON is damaged. Names it.
    """
    return _captions(_msrvtt_content(table), _choose(split, MSRVTT_SPLITS))


def _captions(content: Mapping[str, list[dict[str, Any]]], split: str) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {
        video["video_id"]: [] for video in content["videos"] if split in ("all", video.get("split"))
    }
    for sentence in content["sentences"]:
        if sentence["video_id"] in captions:
            captions[sentence["video_id"]] += caption_texts(sentence["caption"])
    return captions


def msrvtt_json(path: Path) -> Path | None:
    """MSR-VTT's JSON: `path` itself or the only `*videodatainfo*.json` of a folder; None if there is none."""
    if path.is_dir():
        found = sorted(path.glob("*videodatainfo*.json"))
        return found[0] if len(found) == 1 else None
    return path if path.is_file() and path.suffix == ".json" else None


def _msrvtt_content(table: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
        well_formed = all("video_id" in video for video in content["videos"]) and all(
            {"video_id", "caption"} <= sentence.keys() for sentence in content["sentences"]
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{table} is no JSON that can be read ({error})") from error
    except (KeyError, TypeError, AttributeError):
        well_formed = False
    if not well_formed:
        raise DataError(f"{table} must hold MSR-VTT's videos (video_id) and sentences (video_id, caption)")
    return dict(content)


def _choose(split: str, known: tuple[str, ...]) -> str:
    if split not in known:
        raise InputError("split", split, f"be one of {', '.join(known)}")
    return split
