"""`latent-shift serve`: what it refuses. `tests/server/test_serve.py` has what it does."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from latent_shift.cli._listen import allowed_hosts, allowed_origins

from .conftest import Refused, Run


def test_wrong_options_are_refused_before_the_model_is_loaded(refused: Refused, tmp_path: Path) -> None:
    empty = tmp_path / "keys.txt"
    empty.write_text("\n")
    missing = tmp_path / "none.txt"
    sentence = tmp_path / "sentence.txt"
    sentence.write_text("# of Anna\nsecret\n")
    assert refused("serve", "--max-queue", "0").startswith("--max-queue must be valid")
    assert refused("serve", "--keep-days", "nan").startswith("--keep-days must be valid")
    assert refused("serve", "--keep-gb", "nan") == "--keep-gb must be a number, got nan"
    assert refused("serve", "--keep-gb", "0") == "--keep-gb must be at least 1e-09, got 0.0"
    assert refused("serve", "--max-prompt-chars", "0").startswith("--max-prompt-chars must be valid")
    assert refused("serve", "--max-body-kb", "-1") == "--max-body-kb must be at least 1, got -1"
    assert refused("serve", "--max-batch", "0") == "--max-batch must be at least 1, got 0"
    assert refused("serve", "--max-side", "0") == "--max-side must be at least 1, got 0"
    assert (
        refused("serve", "--max-side", "7")
        == "--max-side must be valid (Input should be greater than or equal to 8), got 7"
    )
    assert refused("serve", "--api-keys", empty) == f"--api-keys must hold at least one key, got '{empty}'"
    assert refused("serve", "--api-keys", sentence).startswith("--api-keys must hold a key a line, without spaces")
    assert refused("serve", "--api-keys", missing).startswith("--api-keys must be a text file that can be read")
    assert refused("serve", "--port", "65536") == "--port must be from 0 to 65535, got 65536"
    for name in ("https://example.org", "example.org:80", "example.org/", "*", ""):
        assert refused("serve", "--allow-host", name).startswith("--allow-host must be a name without scheme, port")
    for origin in ("*", "example.org", "https://example.org/page", "null", "https://"):
        assert refused("serve", "--allow-origin", origin).startswith("--allow-origin must be one web site")
    assert refused("serve", "--host", "192.0.2.1").startswith("--host and --port must be an address to listen on")


def test_names_are_taken_as_people_write_them() -> None:
    local = {"localhost", "127.0.0.1", "::1"}
    assert allowed_hosts("LocalHost", ["Example.ORG.", "[2001:DB8::1]"]) == {*local, "example.org", "2001:db8::1"}
    assert allowed_hosts("0.0.0.0", ["Example.org"]) == {*local, "0.0.0.0", "example.org"}
    assert allowed_hosts("0.0.0.0", []) is None
    given = ["https://Example.org/", "http://localhost:3000", "http://[::1]:3000"]
    assert allowed_origins(given) == ("https://example.org", "http://localhost:3000", "http://[::1]:3000")


@pytest.mark.parametrize(("fast", "name"), [(False, "emoji"), (True, "emoji-fast")])
def test_the_fast_model_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch, fast: bool, name: str) -> None:
    import latent_shift.pipelines as pipelines
    from latent_shift.cli.serve import _load

    tiny = pipelines.load_preset("tiny", "cpu", "fp32")
    monkeypatch.setattr(pipelines, "load_pipeline", lambda *_: tiny)
    assert _load("emoji", None, fast, "cpu", "fp32", 1).facts.name == name


def test_the_model_of_a_run_is_called_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_shift.pipelines as pipelines
    from latent_shift.cli.serve import _load

    tiny = pipelines.load_preset("tiny", "cpu", "fp32")
    monkeypatch.setattr(pipelines, "load_pipeline", lambda *_: tiny)
    names = [_load(f"runs/{place}", None, False, "cpu", "fp32", 1).facts.name for place in ("one/model", "two/model/")]
    assert names == ["one", "two"]


def test_a_wrong_model_is_refused(run: Run) -> None:
    result = run("serve", "--port", "0", "--model", "nothing")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--model must be one of emoji or a folder" in result.err


def test_a_wrong_folder_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, refused: Refused, tmp_path: Path
) -> None:
    monkeypatch.setattr("latent_shift.cli.serve._load", lambda *_: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    line = refused("serve", "--port", "0", "--folder", tmp_path / "file")
    assert line.startswith("--folder must be a folder that can be written")


def test_every_line_of_the_file_is_a_key(tmp_path: Path) -> None:
    from latent_shift.cli.serve import _read_keys

    path = tmp_path / "keys.txt"
    path.write_text("\ufefffirst\r\n\n  second\n", encoding="utf-8")
    assert _read_keys(path) == {"first", "second"}


def test_limits_reach_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> None:
    import latent_shift.cli.serve as module
    import latent_shift.server as server
    from latent_shift.pipelines import load_preset
    from latent_shift.server.worker import LocalEngine

    given: list[server.ServerSettings] = []
    engine = LocalEngine("tiny", [load_preset("tiny", "cpu", "fp32")])
    monkeypatch.setattr(module, "_load", lambda *_: engine)
    monkeypatch.setattr(module, "run", lambda *_: None)
    monkeypatch.setattr(server, "create_app", lambda _, settings: given.append(settings))
    result = run(
        *("serve", "--port", 0, "--folder", tmp_path / "new", "--max-prompt-chars", 7, "--max-body-kb", 2),
        *("--max-steps", 9, "--max-queue", 3),
    )
    assert result.code == 0, result.err
    (settings,) = given
    assert (settings.max_prompt_chars, settings.max_body_bytes) == (7, 2048)
    assert (settings.max_steps, settings.max_queue, settings.max_frames, settings.max_side) == (9, 3, 16, 128)


def test_a_port_that_is_taken(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("serve", "--port", port)
    assert line.startswith("--host and --port must be an address to listen on ([Errno 98] Address already in use")
    assert line.endswith(f"got '127.0.0.1:{port}'")


def test_without_the_extra_it_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("latent_shift.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result = run("serve")
    assert result.code == 1
    assert result.err == "latent-shift: error: fastapi is not installed; run: pip install 'latent-shift[serve]'\n"
