"""Packing a source into tar files and reading samples of tar files, ours and others', near and far."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import io
import json
import logging
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
import uvicorn
from disk import full_disk
from fsspec.implementations.memory import MemoryFileSystem
from media.films import write_film
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from latent_shift.core.errors import DataError, InputError
from latent_shift.data import ClipConfig, ClipLoader, open_source, remote, shards
from latent_shift.data._collect import CollectedSource
from latent_shift.data.identity import file_keys
from latent_shift.data.records import ArchiveMember, CaptionedVideo, record_bytes
from latent_shift.data.shards import write_shards

CONFIG = ClipConfig(num_frames=4, duration_s=1.0, size=32)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(5):
        write_film(folder / f"film {number}.mp4", 40 + 4 * number)
    rows = [
        {"file_name": f"film {n}.mp4", "caption": f"film {n}", "captions": [f"film {n}", "ein Film"]} for n in range(5)
    ]
    rows[1]["metadata"] = {"label": "x", "n": 3}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("mb", [1, 100])
def test_a_packed_source_gives_the_same_samples(films: Path, tmp_path: Path, mb: int) -> None:
    source = open_source(str(films))
    size = max(record.size for record in source)
    count = write_shards(source, tmp_path / "shards", size * 2.5 / 1e6 if mb == 1 else mb)
    assert count == (3 if mb == 1 else 1)
    names = [f"{number:05d}.tar" for number in range(count)]
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [*names, "index.jsonl", "packing.json"]
    packed = open_source(str(tmp_path / "shards"))
    assert packed.kind == "shards"
    assert [(r.caption, r.captions, r.metadata) for r in packed] == [
        (r.caption, r.captions, r.metadata) for r in source
    ]
    assert [record_bytes(record) for record in packed] == [record.path.read_bytes() for record in source]
    plain, tarred = ClipLoader(source, CONFIG, seed=3), ClipLoader(packed, CONFIG, seed=3)
    for position in range(12):
        assert (plain[position].frames == tarred[position].frames).all()
        assert plain[position].caption == tarred[position].caption


def test_shards_far_away_are_read_by_url(films: Path, tmp_path: Path) -> None:
    write_shards(open_source(str(films)), tmp_path / "shards")
    far = fsspec.filesystem("memory")
    for file in (tmp_path / "shards").iterdir():
        far.pipe(f"/store/{file.name}", file.read_bytes())
    near = open_source(str(tmp_path / "shards"))
    for spec in (
        "shards:memory://store/index.jsonl",
        "shards:memory://store/00000.tar",
        "shards:memory://store/{00000..00000}.tar",
    ):
        source = open_source(spec)
        assert [record.caption for record in source] == [record.caption for record in near]
        assert record_bytes(source[2]) == record_bytes(near[2])
        assert ClipLoader(source, CONFIG)[1].frames.shape == (4, 32, 32, 3)


def test_shards_of_others_have_a_text_beside_each_video(films: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "theirs-0007.tar", "w") as archive:
        for name, data in (
            ("a/one.mp4", (films / "film 0.mp4").read_bytes()),
            ("a/one.txt", b"the first\nfilm"),
            ("a/two.jpg", b"no picture"),
            ("a/three.mp4", (films / "film 1.mp4").read_bytes()),
            ("a/three.json", b'{"caption": "the third", "fps": 25}'),
            ("a/readme.md", b"hello"),
            ("a/four.001.mp4", (films / "film 1.mp4").read_bytes()),
            ("a/five.json", b'{"caption": "the fifth"}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    for spec in (str(tmp_path / "theirs-0007.tar"), f"shards:{tmp_path}/theirs-{{0007..0007}}.tar"):
        source = open_source(spec)
        assert [record.caption for record in source] == ["the first film", "the third"]
        without = "no video or image has its key, which ends at the first dot"
        assert [(Path(entry.file).name, entry.reason) for entry in source.dropped] == [
            ("two.jpg", "it has no caption"),
            ("four.001.mp4", without),
            ("five.json", without),
        ]
        assert ClipLoader(source, CONFIG)[0].frames.shape == (4, 32, 32, 3)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("facts", "text", "captions"),
    [
        ({"captions": "a dog  runs"}, None, ["a dog runs"]),
        ({"captions": 5, "caption": "a dog"}, None, ["a dog"]),
        ({"captions": [5, "a dog", None]}, None, ["a dog"]),
        ({"caption": ["a dog", "a cat"]}, None, ["a dog", "a cat"]),
        ({"caption": "a dog"}, "a dog\n", ["a dog"]),
        ({"caption": "a dog"}, "it runs", ["a dog", "it runs"]),
        ({"captions": ["a dog", "a dog"]}, None, ["a dog", "a dog"]),
    ],
)
def test_captions_of_any_form(tmp_path: Path, facts: dict[str, Any], text: str | None, captions: list[str]) -> None:
    members = {"a.mp4": b"film", "a.json": json.dumps(facts).encode()}
    shard = write_tar(tmp_path / "theirs.tar", members | ({"a.txt": text.encode()} if text is not None else {}))
    assert [list(record.captions) for record in open_source(str(shard))] == ([captions] if captions else [])


def test_shards_without_an_index_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (11, 2, 7, 0, 10, 3):
        write_tar(tmp_path / f"{number:04}.tar", {"a.mp4": b"film", "a.txt": b"shard %d" % number})
    assert [record.caption for record in open_source(str(tmp_path))] == [f"shard {n}" for n in (0, 2, 3, 7, 10, 11)]


def test_endings_in_capitals_are_endings(tmp_path: Path) -> None:
    members = {"a.MP4": b"film", "a.TXT": b"a dog", "b.Jpg": b"photo", "b.JSON": b'{"caption": "a cat"}'}
    source = open_source(str(write_tar(tmp_path / "theirs.tar", members)))
    assert [(record.path.name, record.caption) for record in source] == [("a.MP4", "a dog"), ("b.Jpg", "a cat")]


def test_other_keys_of_a_sample_are_its_metadata(tmp_path: Path) -> None:
    facts = {"caption": "a dog", "url": "u", "duration": 3.5, "metadata": {"label": "x"}}
    shard = write_tar(tmp_path / "theirs.tar", {"a.mp4": b"film", "a.json": json.dumps(facts).encode()})
    assert open_source(str(shard))[0].metadata == {"url": "u", "duration": 3.5, "label": "x"}


def test_one_bad_text_is_no_bad_shard(films: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "theirs.tar", "w") as archive:
        for name, data in (
            ("a.mp4", (films / "film 0.mp4").read_bytes()),
            ("a.json", b'{"caption": "cut'),
            ("b.mp4", (films / "film 1.mp4").read_bytes()),
            ("b.txt", b"caf\xe9"),
            ("c.mp4", (films / "film 2.mp4").read_bytes()),
            ("c.txt", b"the third"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    source = open_source(str(tmp_path / "theirs.tar"))
    assert [record.caption for record in source] == ["the third"]
    assert [Path(entry.file).name for entry in source.dropped] == ["a.mp4", "b.mp4"]


def test_a_second_packing_writes_what_is_missing_alone(films: Path, tmp_path: Path) -> None:
    source = open_source(str(films))
    megabytes = max(record.size for record in source) * 1.1 / 1e6
    write_shards(source, tmp_path / "shards", megabytes)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    assert len(before) == 5
    (tmp_path / "shards" / "00001.tar").unlink()
    cut = tmp_path / "shards" / "00003.tar"
    cut.write_bytes(cut.read_bytes()[:600])
    (tmp_path / "shards" / "index.jsonl").unlink()
    calls: list[tuple[str, int, int]] = []
    write_shards(source, tmp_path / "shards", megabytes, lambda *call: calls.append(call))
    assert calls == [("shards", number, 5) for number in range(1, 6)]
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    assert {name for name in before if before[name] != after[name]} == {"00001.tar", "00003.tar"}
    assert [record.caption for record in open_source(str(tmp_path / "shards"))] == [r.caption for r in source]


def test_another_packing_into_the_same_folder(films: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    source = open_source(str(films))
    megabytes = max(record.size for record in source) * 1.1 / 1e6
    write_shards(source, output, megabytes)
    # Another film of the same name, captions and size is packed again.
    film = films / "film 2.mp4"
    data = bytearray(film.read_bytes())
    data[len(data) // 2] ^= 255
    film.write_bytes(data)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    write_shards(open_source(str(films)), output, megabytes)
    after = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert {name for name in after if before[name] != after[name]} == {"00002.tar", "index.jsonl"}
    assert record_bytes(open_source(str(output))[2]) == data
    # Other samples, another size, or the shards themselves as a source: nothing of what is there is lost.
    rows = [json.loads(line) for line in (films / "metadata.jsonl").read_text().splitlines()]
    (films / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    fewer = open_source(str(films))
    rows[1]["metadata"]["n"] = 4
    (films / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = open_source(str(films))
    expected = "output must be a new folder: it holds shards of other samples, or of another size"
    for other, size in ((fewer, megabytes), (changed, megabytes), (source, 100)):
        with pytest.raises(InputError, match=expected):
            write_shards(other, output, size)
    for size in (megabytes, 100):
        with pytest.raises(InputError, match="output must be another folder than that of the source's own shards"):
            write_shards(open_source(str(output)), output, size)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == after


def test_shards_of_others_are_never_overwritten(films: Path, tmp_path: Path) -> None:
    """Those of img2dataset and its kin are called 00000.tar, too, and have no index."""
    output = tmp_path / "theirs"
    output.mkdir()
    shard = write_tar(output / "00000.tar", {"only.mp4": b"the only copy", "only.txt": b"a dog"})
    before = shard.read_bytes()
    with pytest.raises(InputError, match="output must be a new folder"):
        write_shards(open_source(str(films)), output)
    with pytest.raises(InputError, match="output must be another folder than that of the source's own shards"):
        write_shards(open_source(str(output)), output, 1e-6)
    assert [path.name for path in output.iterdir()] == ["00000.tar"]
    assert shard.read_bytes() == before


def test_what_a_killed_packing_left_half_written_is_removed(films: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    for name in (".00000.tar.x7", ".index.jsonl.x8"):
        (output / name).mkdir(parents=True)
        (output / name / "half").write_bytes(b"half")
    write_shards(open_source(str(films)), output)
    assert sorted(path.name for path in output.iterdir()) == ["00000.tar", "index.jsonl", "packing.json"]


def test_two_packings_into_one_folder_at_a_time_are_refused(films: Path, tmp_path: Path) -> None:
    source = open_source(str(films))

    def again(*_: object) -> None:
        with pytest.raises(InputError, match="output must be a folder that no other run is packing into"):
            write_shards(source, tmp_path / "shards")

    assert write_shards(source, tmp_path / "shards", progress=again) == 1


def test_a_file_that_is_gone_is_named(films: Path, tmp_path: Path) -> None:
    (films / "film 2.mp4").rename(tmp_path / "away.mp4")
    (films / "film 2.mp4").symlink_to("nowhere.mp4")
    (films / "film 2.txt").write_text("a dog")
    with pytest.raises(DataError, match=r"film 2\.mp4 cannot be read \(No such file or directory\)$"):
        write_shards(open_source(f"files:{films}"), tmp_path / "shards")


def test_line_breaks_of_unicode_are_none_of_an_index(films: Path, tmp_path: Path) -> None:
    source = CollectedSource("files", films)
    source.add(films / "film 0.mp4", "a dog", {"about": "one\u2028two\u2029three\x85four"})
    for _ in range(2):
        write_shards(source, tmp_path / "shards")
        assert open_source(str(tmp_path / "shards"))[0].metadata == source[0].metadata
    index = tmp_path / "shards/index.jsonl"
    index.write_text(index.read_text("utf-8") + "\n", encoding="utf-8-sig")
    assert len(open_source(str(index))) == 1
    index.write_bytes(b"\xff" + index.read_bytes())
    with pytest.raises(DataError, match=r"index\.jsonl cannot be read as UTF-8 text"):
        open_source(str(index))


def test_the_records_of_a_packing_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CollectedSource("shards", tmp_path)
    for number in range(5000):
        source.add(tmp_path / f"{number}.mp4", f"film {number}", {}, ArchiveMember("far.tar", 512 * number, 500_000))
    held: list[int] = []

    def count(*_: object) -> None:
        gc.collect()
        held.append(sum(type(thing) is CaptionedVideo for thing in gc.get_objects()))

    monkeypatch.setattr(shards, "_write_all", count)
    write_shards(source, tmp_path / "shards")
    assert held[0] < 1000


def test_metadata_of_any_kind_are_packed_once(films: Path, tmp_path: Path) -> None:
    """Parquet has dates, and numbers that are none."""
    source = open_source(str(films))
    facts = {"date": datetime.date(2026, 11, 27), "score": float("nan")}
    odd = CollectedSource("files", films)
    for record in source:
        odd.add(record.path, record.captions, facts)
    write_shards(odd, tmp_path / "shards")
    before = (tmp_path / "shards/00000.tar").stat().st_mtime_ns
    write_shards(odd, tmp_path / "shards")
    assert (tmp_path / "shards/00000.tar").stat().st_mtime_ns == before
    assert open_source(str(tmp_path / "shards"))[0].metadata["date"] == "2026-11-27"


def test_bad_members_are_quarantined_by_their_names(films: Path, tmp_path: Path) -> None:
    (films / "film 2.mp4").write_bytes(b"no film at all, but long enough to be read")
    write_shards(open_source(str(films)), tmp_path / "shards")
    loader = ClipLoader(open_source(str(tmp_path / "shards")), CONFIG.model_copy(update={"max_bad_share": 0.5}), seed=0)
    assert len({loader[position].caption for position in range(30)}) == 6 - 1
    (bad,) = loader.bad.values()
    assert bad.file == str(tmp_path / "shards/00000.tar/000002.mp4")
    assert "tmp" not in bad.reason


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shards:memory://nowhere/index.jsonl", "source must be a file or a URL that can be read ("),
        ("shards:memory://nowhere/0.tar", "source must be a file or a URL that can be read ("),
        ("shards:far://nowhere/index.jsonl", "source must be a file or a URL that fsspec knows (Protocol not known"),
        ("shards:s3://nowhere/{0..1}.tar?sig=x", "source must be of a kind whose library is installed ("),
    ],
)
def test_a_url_that_leads_nowhere_is_one_line(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError) as caught:
        open_source(spec)
    assert str(caught.value).startswith(message)
    assert "sig" not in str(caught.value)
    assert "\n" not in str(caught.value)


class SignedFiles(MemoryFileSystem):
    """Files that are there for those who know the signature."""

    protocol = "signed"
    asked: ClassVar[list[str]] = []
    failing = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("signed:/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self.asked.append(path)
        name, _, query = path.partition("?")
        if query != "key=7&until=9":
            raise PermissionError("403 Forbidden")
        if SignedFiles.failing > 0:
            SignedFiles.failing -= 1
            raise ConnectionResetError("connection reset")
        return super()._open(name, mode, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        with self._open(path) as file:
            content: bytes = file.read()
        return content[start:end]


@pytest.fixture
def signed(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store behind signed URLs."""
    write_shards(open_source(str(films)), tmp_path / "shards")
    fsspec.register_implementation("signed", SignedFiles, clobber=True)
    far = fsspec.filesystem("memory")
    for file in (tmp_path / "shards").iterdir():
        far.pipe(f"/signed/{file.name}", file.read_bytes())
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(SignedFiles, "failing", 0)
    return "shards:signed://signed/"


@pytest.mark.parametrize("name", ["index.jsonl", "00000.tar", "{00000..00000}.tar"])
def test_what_follows_in_a_url_is_no_option_and_is_not_shown(signed: str, name: str) -> None:
    source = open_source(f"{signed}{name}?key=7&until=9")
    assert len(source) == 5
    assert len(record_bytes(source[3])) == source[3].size
    assert "key" not in f"{source.path}{source[3].path}"
    with pytest.raises(InputError, match=r"must be a file or a URL that can be read \(403 Forbidden\), got '[^?]+'$"):
        open_source(f"{signed}{name}?key=8")


def test_a_network_that_fails_for_a_moment_is_asked_again(signed: str, caplog: pytest.LogCaptureFixture) -> None:
    record = open_source(f"{signed}index.jsonl?key=7&until=9")[2]
    expected = record_bytes(record)
    SignedFiles.failing = 3
    with caplog.at_level(logging.INFO):
        assert record_bytes(record) == expected
    assert [message[-22:] for message in caplog.messages] == [f"attempt {n} of 4 follows" for n in (2, 3, 4)]
    SignedFiles.failing = 99
    with pytest.raises(DataError, match=r"^signed:/signed/.*000002.mp4 cannot be read \(connection reset\)$"):
        record_bytes(record)
    assert SignedFiles.failing == 95
    gone = dataclasses.replace(record, member=ArchiveMember("signed://signed/gone.tar?key=8", 0, 9))
    SignedFiles.asked.clear()
    with pytest.raises(DataError, match="403 Forbidden"):
        record_bytes(gone)
    assert len(SignedFiles.asked) == 1


def test_remote_shards_have_a_cache_of_their_own(signed: str) -> None:
    spec = f"{signed}index.jsonl?key=7&until=9"
    SignedFiles.asked.clear()
    keys = file_keys(list(open_source(spec)))
    assert len(set(keys)) == 5
    assert SignedFiles.asked == [f"/signed/{name}?key=7&until=9" for name in ("index.jsonl", "00000.tar")]
    far = fsspec.filesystem("memory")
    content = bytearray(far.cat("/signed/00000.tar"))
    content[len(content) // 2] ^= 1
    far.pipe("/signed/00000.tar", bytes(content))
    assert not set(keys) & set(file_keys(list(open_source(spec))))


@dataclasses.dataclass
class Site:
    """A web server of a folder's files, and the ranges that it was asked for."""

    folder: Path
    url: str = ""
    sends_parts: bool = True
    failing: int = 0
    asked: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        file = self.folder / request.path_params["name"]
        self.asked.append((file.name, request.headers.get("range")))
        if self.failing:
            self.failing -= 1
            return Response(status_code=503)
        if not file.is_file():
            return Response(status_code=404)
        return FileResponse(file) if self.sends_parts else Response(file.read_bytes())


@pytest.fixture
def site(films: Path, tmp_path: Path) -> Iterator[Site]:
    write_shards(open_source(str(films)), tmp_path / "shards")
    site = Site(tmp_path / "shards")
    app = Starlette(routes=[Route("/{name}", site.answer)])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    site.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield site
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("name", ["index.jsonl", "{00000..00000}.tar"])
def test_of_a_shard_on_the_web_a_samples_own_bytes_are_fetched(site: Site, name: str) -> None:
    source, near = open_source(f"shards:{site.url}/{name}"), open_source(str(site.folder))
    site.asked.clear()
    assert record_bytes(source[3]) == record_bytes(near[3])
    member = source[3].member
    assert member is not None
    assert site.asked == [("00000.tar", f"bytes={member.offset}-{member.offset + member.size - 1}")]
    frames = ClipLoader(source, CONFIG, seed=3)[1].frames
    assert (frames == ClipLoader(near, CONFIG, seed=3)[1].frames).all()


def test_a_web_server_that_sends_whole_files_is_named_and_asked_once(site: Site) -> None:
    record = open_source(f"shards:{site.url}/index.jsonl")[3]
    site.sends_parts = False
    site.asked.clear()
    with pytest.raises(DataError, match=r"000003.mp4 cannot be read \(its server sends whole files, and no parts"):
        record_bytes(record)
    assert len(site.asked) == 1


def test_the_first_failure_of_the_web_is_asked_again_like_the_others(site: Site) -> None:
    """In a process that had no use for fsspec's HTTP library until then."""
    site.failing = 3
    code = "from latent_shift.data import remote; remote._FIRST_WAIT_S = 0; "
    code += f"print(len(remote.read_bytes('{site.url}/00000.tar', 0, 9, 'x')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, site.failing) == ("9\n", 0), done.stderr


def test_what_is_not_on_the_web_is_one_line(site: Site) -> None:
    with pytest.raises(InputError, match=rf"source must be .*nothing is there\), got '{site.url}/no.jsonl'"):
        open_source(f"shards:{site.url}/no.jsonl")


def test_a_full_disk_is_one_line(films: Path, tmp_path: Path) -> None:
    with full_disk() as limit:
        limit(3000)
        with pytest.raises(DataError) as caught:
            write_shards(open_source(str(films)), tmp_path / "shards")
    shard = tmp_path / "shards" / "00000.tar"
    assert str(caught.value) == f"shard {shard} cannot be written (File too large); those before it stay"
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["packing.json"]
    assert write_shards(open_source(str(films)), tmp_path / "shards") == 1


def test_what_is_no_shard_is_named(films: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(DataError, match=r"bad.tar is damaged or no tar file \("):
        open_source(str(tmp_path / "bad.tar"))
    with pytest.raises(InputError, match=r"source must be a .tar file, a folder of them, .*, got '.*a-2.tar'"):
        open_source(f"shards:{tmp_path}/a-{{2..3}}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"source must be a .tar file"):
        open_source(f"shards:{tmp_path}/empty")
    (tmp_path / "index.jsonl").write_text('{"archive": "a.tar"}\n')
    with pytest.raises(DataError, match=r"index.jsonl, line 1: must name archive, file_name, offset and size"):
        open_source(f"shards:{tmp_path}")
    with pytest.raises(InputError, match="shard_mb must be above 0, got 0"):
        write_shards(open_source(str(films)), tmp_path / "x", 0)


def test_a_member_that_was_cut_off_is_named(films: Path, tmp_path: Path) -> None:
    write_shards(open_source(str(films)), tmp_path / "shards")
    shard = tmp_path / "shards/00000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    last = open_source(str(tmp_path / "shards"))[4]
    with pytest.raises(DataError, match=rf"^.*00000.tar/000004.mp4 is truncated: {last.size} bytes are missing$"):
        record_bytes(last)
