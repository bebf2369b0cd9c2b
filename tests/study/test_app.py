"""`study/app.py`: the routes, and what hostile callers get."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from latent_shift.study import Store
from latent_shift.study.app import create_app

from .conftest import Make, both

LOCAL = frozenset({"localhost", "testserver"})


@pytest.fixture
def client(make: Make) -> Iterator[TestClient]:
    with connect(make(6, pairs_per_rater=3, checks_per_rater=1)) as client:
        yield client


@contextlib.contextmanager
def connect(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(store, LOCAL), raise_server_exceptions=False) as client:
        yield client


def join(client: TestClient, **fields: Any) -> dict[str, str]:
    answer = client.post("/api/raters", json={"consent": True, **fields})
    assert answer.status_code == 201
    return {"Authorization": f"Bearer {answer.json()['token']}"}


def test_a_study_from_consent_to_code(client: TestClient) -> None:
    study = client.get("/api/study").json()
    assert (study["pairs"], study["checks"], study["allow_ties"]) == (3, 1, False)
    headers = join(client)
    state = client.get("/api/state", headers=headers).json()
    assert (state["status"], state["item"]["position"], state["item"]["answers"]) == ("training", 0, None)
    trained = [
        client.post("/api/training", json=both(side), headers=headers).json()["right"] for side in ("left", "right")
    ]
    assert sorted(trained) == [False, True]
    state = client.get("/api/state", headers=headers).json()
    while state["status"] == "rate":
        item = state["item"]
        for clip in (item["left"], item["right"]):
            (sheet,) = clip["sheets"]
            got = client.get(sheet)
            assert (got.status_code, got.headers["content-type"]) == (200, "image/webp")
        state = client.put(f"/api/items/{item['position']}", json=both("left"), headers=headers).json()
    assert (state["status"], state["done"], state["total"], state["item"]) == ("ready", 4, 4, None)
    assert client.get("/api/items/2", headers=headers).json()["answers"] == both("left")
    code = client.post("/api/finish", headers=headers).json()["code"]
    assert re.fullmatch("[0-9A-F]{10}", code)


def test_the_code_comes_with_a_link_that_hands_it_in(make: Make) -> None:
    link = "https://crowd.example/done?cc={code}"
    store = make(1, checks_per_rater=0, raters_per_pair=1, completion_url=link, full_code="NONE LEFT")
    with connect(store) as client:
        one, late = join(client), join(client)
        for headers in (one, late):
            for side in ("left", "right"):
                client.post("/api/training", json=both(side), headers=headers)
        state = client.get("/api/state", headers=one).json()
        assert (state["status"], state["code"], state["link"]) == ("rate", None, None)
        client.put("/api/items/1", json=both("left"), headers=one)
        state = client.post("/api/finish", headers=one).json()
        assert state["link"] == link.replace("{code}", state["code"])
        state = client.get("/api/state", headers=late).json()
        assert (state["status"], state["code"]) == ("full", "NONE LEFT")
        assert state["link"] == "https://crowd.example/done?cc=NONE%20LEFT"


def test_nothing_that_is_sent_names_a_system(client: TestClient) -> None:
    headers = join(client)
    client.post("/api/training", json=both("left"), headers=headers)
    client.post("/api/training", json=both("right"), headers=headers)
    state = client.get("/api/state", headers=headers)
    assert set(state.json()["item"]) == {"position", "prompt", "left", "right", "answers"}
    sheet = state.json()["item"]["left"]["sheets"][0]
    assert re.fullmatch(r"/clips/[0-9a-f]{32}-0\.webp", sheet)
    assert client.get(sheet).headers["last-modified"] == "Thu, 01 Jan 1970 00:00:00 GMT"


def test_the_page_and_its_policy(client: TestClient) -> None:
    for path in ("/", "/app.js", "/player.js", "/style.css", "/icon.svg"):
        got = client.get(path)
        assert got.status_code == 200
        assert "default-src 'none'" in got.headers["content-security-policy"]
        assert re.findall(r"(?:https?:)?//[a-z][^\s\"']*\.[a-z]", got.text.replace("http://www.w3.org", "")) == []
    assert client.head("/").status_code == 200
    assert client.get("/api/study").headers["cache-control"] == "no-store"


HOSTILE = [
    ("POST", "/api/raters", {"json": {}}, 400, "consent: Field required"),
    ("POST", "/api/raters", {"json": {"consent": False}}, 400, "consent: Input should be True"),
    ("POST", "/api/raters", {"json": {"consent": "true"}}, 400, "consent: Input should be True"),
    ("POST", "/api/raters", {"json": {"consent": True, "x": 1}}, 400, "x: Extra inputs are not permitted"),
    (
        "POST",
        "/api/raters",
        {"json": {"consent": True, "worker": "a" * 101}},
        400,
        "worker: String should have at most",
    ),
    ("POST", "/api/raters", {"json": {"consent": True, "worker": "a\nb"}}, 400, "worker: String should match"),
    ("POST", "/api/raters", {"content": b'{"consent": true, "worker": "\\ud800"}'}, 400, "worker: "),
    ("POST", "/api/raters", {"json": [1]}, 400, "the body: Input should be a valid dictionary"),
    ("POST", "/api/raters", {"content": b"{"}, 400, "the body must be valid JSON"),
    ("POST", "/api/raters", {"content": b"\xff\xfe"}, 400, ""),
    ("POST", "/api/raters", {"content": b"[" * 15000}, 400, ""),
    ("POST", "/api/raters", {"content": b"x" * 20000}, 413, "the body must have at most 16384 bytes"),
    ("GET", "/api/state", {}, 401, "a rater's token must be given"),
    ("GET", "/api/state", {"headers": {"Authorization": "Bearer x"}}, 401, "this link belongs to nobody"),
    ("GET", "/api/state", {"headers": {"Authorization": b"Bearer \xff\xfe"}}, 401, "this link belongs to nobody"),
    ("GET", "/clips/..%2Fstudy.sqlite", {}, 404, ""),
    ("GET", "/clips/%2e%2e%2fstudy.sqlite", {}, 404, ""),
    ("GET", "/clips/study.sqlite%00", {}, 404, ""),
    ("GET", "/study.sqlite", {}, 404, ""),
    ("GET", "/index.html", {}, 404, ""),
    ("DELETE", "/api/state", {}, 405, ""),
    ("GET", "/openapi.json", {}, 404, ""),
]


@pytest.mark.parametrize(("method", "path", "options", "status", "message"), HOSTILE)
def test_strangers_are_refused_in_one_line(
    client: TestClient, method: str, path: str, options: dict[str, Any], status: int, message: str
) -> None:
    headers = {"Content-Type": "application/json", **options.get("headers", {})}
    answer = client.request(method, path, **{**options, "headers": headers})
    assert answer.status_code == status, answer.text
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"].startswith(message)
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("items/1", both("left"), 404, "you were shown nothing at position 1"),
        ("items/0", both("left"), 400, "position: Input should be greater than or equal to 1"),
        ("items/99999999999999999999", both("left"), 400, "position: Input should be less than or equal to 1000000"),
        ("items/x", both("left"), 400, "position: Input should be a valid integer"),
        ("items/1", {"quality": "left"}, 400, "faithfulness: Field required"),
        ("items/1", both("up"), 400, "quality: Input should be 'left', 'right' or 'same'"),
        ("items/1", both("same"), 400, "quality must be one of left, right, got 'same'"),
        ("items/1", {"quality": 1e308, "faithfulness": None}, 400, "quality: Input should be"),
    ],
)
def test_raters_are_refused_in_one_line(client: TestClient, path: str, body: Any, status: int, message: str) -> None:
    answer = client.put(f"/api/{path}", json=body, headers=join(client))
    assert (answer.status_code, answer.json()["error"][: len(message)]) == (status, message)


def test_a_worker_takes_part_once(client: TestClient) -> None:
    join(client, worker="5f1e.A_b-c@x:1")
    answer = client.post("/api/raters", json={"consent": True, "worker": "5f1e.A_b-c@x:1"})
    assert answer.status_code == 409
    assert answer.json() == {"error": "this worker has begun already; open the link that you were given then"}
    assert client.post("/api/finish", headers=join(client)).status_code == 409


def test_other_sites_and_other_names_are_refused(client: TestClient) -> None:
    for host in ("evil.example", "localhost.evil.example", "", "[::1", "localhost@evil"):
        assert client.get("/api/study", headers={"Host": host}).status_code == 403
    for host in ("localhost:8001", "LOCALHOST", "localhost."):
        assert client.get("/api/study", headers={"Host": host}).status_code == 200
    body = {"consent": True}
    for origin in ("http://evil.example", "null"):
        assert client.post("/api/raters", json=body, headers={"Origin": origin}).status_code == 403
    assert client.post("/api/raters", json=body, headers={"Origin": "http://testserver"}).status_code == 201


def test_a_mistake_of_ours_is_answered_in_one_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(2)

    def fail(*_: Any) -> None:
        raise KeyError("inner")

    monkeypatch.setattr(store, "join", fail)
    with connect(store) as client:
        answer = client.post("/api/raters", json={"consent": True})
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server made a mistake; its log says more"}


def test_the_study_never_loads_torch(make: Make, tmp_path: Path) -> None:
    import subprocess
    import sys

    make(2)
    code = (
        "import sys; from pathlib import Path; from starlette.testclient import TestClient\n"
        "from latent_shift.study import Store, read_report, write_report\n"
        "from latent_shift.study.app import create_app\n"
        f"folder = Path({str(tmp_path / 'study')!r}); store = Store(folder)\n"
        "write_report(read_report(store), folder / 'report')\n"
        "with TestClient(create_app(store, None)) as client:\n"
        "    assert client.post('/api/raters', json={'consent': True}).status_code == 201\n"
        "assert not {'torch', 'numpy', 'PIL', 'av'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
