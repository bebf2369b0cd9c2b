"""`study/store.py`: who is shown what. Times are told by the test; the crowd is many threads."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import Counter
from typing import Any

import pytest

from latent_shift.core.errors import DataError, InputError
from latent_shift.study import Store, StudySettings, create_study, read_report
from latent_shift.study.pages import to_markdown
from latent_shift.study.records import State
from latent_shift.study.store import ConflictError, UnknownItemError, UnknownRaterError

from .conftest import Clock, CopyWriter, Make, begin, both, sources


def answer(store: Store, token: str, state: State, side: str = "left") -> State:
    assert state.item is not None
    return store.answer(token, state.item.position, both(side))


def work(store: Store, token: str) -> State:
    """Answers until there is nothing more."""
    state = store.state(token)
    while state.status == "rate":
        state = answer(store, token, state)
    return state


def scrambled_side(store: Store, state: State) -> str:
    """Where the scrambled clip is: `CopyWriter` writes bytes backwards. Of a pair, the left."""
    assert state.item is not None
    return "right" if store.files[state.item.right.file_name(0)].read_bytes()[:1].isdigit() else "left"


def fail(store: Store, token: str) -> State:
    """Answers all, and every check wrongly."""
    state = store.state(token)
    while state.item is not None:
        state = answer(store, token, state, scrambled_side(store, state))
    return state


def pair_votes(store: Store) -> Counter[int]:
    kinds = {pair.id: pair.kind for pair in store.pairs()}
    return Counter(vote.pair for vote in store.votes() if kinds[vote.pair] == "pair")


def test_a_rater_goes_from_training_to_the_code(make: Make) -> None:
    store = make(6, pairs_per_rater=4, checks_per_rater=2)
    token = store.join()
    state = store.state(token)
    assert (state.status, state.done, state.total) == ("training", 0, 6)
    assert state.item is not None
    assert state.item.position == 0
    with pytest.raises(ConflictError, match="something left"):
        store.finish(token)
    assert {store.train(token, both(side)) for side in ("left", "right")} == {True, False}
    seen = []
    state = store.state(token)
    for done in range(6):
        assert (state.status, state.done) == ("rate", done)
        assert state.item is not None
        assert state.item.position == done + 1
        assert store.state(token) == state  # asking again changes nothing
        seen.append(frozenset((state.item.left, state.item.right)))
        state = answer(store, token, state)
    assert len(set(seen)) == 6
    assert (state.status, state.code) == ("ready", None)
    finished = store.finish(token)
    assert finished.status == "finished"
    assert finished.code == store.raters()[0].code
    assert store.finish(token) == store.state(token) == finished
    with pytest.raises(ConflictError, match="can no longer be changed"):
        store.answer(token, 1, both("left"))
    assert len(pair_votes(store)) == 4
    assert len(store.votes()) == 6


def test_going_back_shows_the_same_and_changes_the_vote(make: Make) -> None:
    store = make(3, checks_per_rater=0)
    token = begin(store)
    first = store.state(token)
    second = answer(store, token, first, "left")
    again = store.item(token, 1)
    assert first.item is not None
    assert (again.left, again.right, again.answers) == (first.item.left, first.item.right, both("left"))
    assert store.answer(token, 1, {"quality": "right", "faithfulness": "left"}) == second
    assert store.item(token, 1).answers == {"quality": "right", "faithfulness": "left"}
    (vote,) = store.votes()
    names = ("second", "first") if vote.flipped else ("first", "second")
    assert vote.answers == {"quality": names[1], "faithfulness": names[0]}


def test_votes_are_for_the_system_that_was_seen_on_that_side(make: Make) -> None:
    store = make(40, pairs_per_rater=40, checks_per_rater=0)
    token = begin(store)
    files = {clip: path.read_bytes() for clip, path in store.files.items()}
    state, meant = store.state(token), []
    while state.item is not None:
        meant.append(files[state.item.left.file_name(0)].decode()[0])
        state = answer(store, token, state, "left")
    assert ["ab"[vote.answers["quality"] == "second"] for vote in store.votes()] == meant
    assert {"a", "b"} == set(meant)  # 1 in 2**39 fails: sides are random


def test_the_fewest_come_first(make: Make) -> None:
    store = make(10, pairs_per_rater=5, checks_per_rater=0, raters_per_pair=3)
    for _ in range(4):
        work(store, begin(store))
    assert set(pair_votes(store).values()) == {2}


def test_a_pair_that_was_left_is_given_to_others(make: Make, clock: Clock) -> None:
    store = make(1, raters_per_pair=2, checks_per_rater=0, lease_minutes=10)
    gone, slow, third = (begin(store) for _ in range(3))
    assert store.state(gone).status == store.state(slow).status == "rate"
    assert store.state(third).status == "wait"
    with pytest.raises(ConflictError):
        store.finish(third)
    clock.now += 9 * 60
    assert store.state(slow).status == "rate"  # and its lease is longer now
    clock.now += 2 * 60
    waited = store.state(third)
    assert waited.status == "rate"
    assert answer(store, slow, State("rate", 0, 1, store.item(slow, 1))).status == "ready"
    assert answer(store, third, waited).status == "ready"
    with pytest.raises(ConflictError, match="somebody else has rated this pair"):
        store.answer(gone, 1, both("left"))
    assert store.state(gone).status == "full"
    assert pair_votes(store).total() == 2


def test_a_late_answer_is_taken_while_there_is_room(make: Make, clock: Clock) -> None:
    store = make(1, raters_per_pair=2, checks_per_rater=0)
    late = begin(store)
    state = store.state(late)
    clock.now += 86400
    assert answer(store, late, state).status == "ready"
    assert [vote.seconds for vote in store.votes()] == [86400]


def test_time_away_is_not_counted(make: Make, clock: Clock) -> None:
    store = make(1, checks_per_rater=0)
    token = begin(store)
    store.state(token)
    clock.now += 86400
    state = store.state(token)
    clock.now += 7
    answer(store, token, state)
    assert [vote.seconds for vote in store.votes()] == [7]


def test_who_has_rated_may_finish_instead_of_waiting(make: Make) -> None:
    store = make(2, raters_per_pair=1, checks_per_rater=0)
    one, other = begin(store), begin(store)
    store.state(other)
    assert work(store, one).status == "wait"
    assert store.finish(one).status == "finished"


@pytest.mark.parametrize(("names", "baseline", "most"), [("abc", None, 3), ("abcd", None, 6), ("abcd", "d", 3)])
def test_no_rater_sees_a_clip_in_two_pairs(tmp_path: Any, names: str, baseline: str | None, most: int) -> None:
    """Of three systems one pair of a sentence, of four two; with a baseline, which is in every pair, one."""
    systems = {name: sources(tmp_path / "clips", name, most) for name in names}
    create_study(
        tmp_path / "study",
        systems,
        CopyWriter(),
        StudySettings(raters_per_pair=2, checks_per_rater=0),
        baseline=baseline,
    )
    store = Store(tmp_path / "study")
    pairs = len(store.pairs())
    per_sentence = 2 if (len(names), baseline) == (4, None) else 1
    assert store.quota == per_sentence * most
    tokens = []
    while pair_votes(store).total() < 2 * pairs:
        tokens.append(begin(store))
        assert work(store, tokens[-1]).status == "ready"
        assert len(tokens) <= 4 * len(names)
    for token in tokens:
        done = store.state(token).done
        items = [store.item(token, position) for position in range(1, done + 1)]
        names_seen = [clip.name for item in items for clip in (item.left, item.right)]
        assert len(names_seen) == len(set(names_seen))
    assert set(pair_votes(store).values()) == {2}
    store.close()


@pytest.mark.parametrize(("names", "pairs"), [("ab", 2), ("ab", 12), ("abc", 3), ("abcd", 5)])
def test_no_rater_sees_the_clip_of_a_check_again_and_all_pairs_fill(tmp_path: Any, names: str, pairs: int) -> None:
    systems = {name: sources(tmp_path / "clips", name, pairs) for name in names}
    create_study(tmp_path / "study", systems, CopyWriter(), StudySettings(raters_per_pair=2, checks_per_rater=2))
    store = Store(tmp_path / "study")
    real = [pair.id for pair in store.pairs() if pair.kind == "pair"]
    tokens = []
    while pair_votes(store).total() < 2 * len(real):
        tokens.append(begin(store))
        assert work(store, tokens[-1]).status == "ready"
        assert len(tokens) <= 4 * len(names)
    checks = {vote.rater for vote in store.votes() if vote.pair not in real}
    assert len(checks) == len(tokens) or pairs == 2  # where all that is left would be lost, there is no check
    for token in tokens:
        items = [store.item(token, position + 1) for position in range(store.state(token).done)]
        names_seen = [clip.name for item in items for clip in (item.left, item.right)]
        assert len(names_seen) == len(set(names_seen))
    store.close()


def test_of_one_pair_there_is_no_check_that_would_show_its_clips(make: Make) -> None:
    store = make(1, raters_per_pair=1, checks_per_rater=1)
    assert work(store, begin(store)).done == 1
    assert pair_votes(store).total() == 1


def test_the_last_raters_meet_checks_and_know_how_many_are_left(make: Make) -> None:
    """Six pairs of one vote each: the first rater is asked about four, so the second about two; both are checked."""
    store = make(6, raters_per_pair=1, pairs_per_rater=4, checks_per_rater=2)
    for pairs in (4, 2):
        token = begin(store)
        totals, state = [], store.state(token)
        while state.status == "rate":
            totals.append(state.total)
            state = answer(store, token, state)
        assert totals == [pairs + 2] * (pairs + 2)
        assert (state.status, state.done, state.total) == ("ready", pairs + 2, pairs + 2)
    late = store.join()
    assert store.train(late, both("left")) != store.train(late, both("right"))
    assert (store.state(late).status, store.state(late).total) == ("full", 0)


def test_checks_come_even_if_others_take_the_pairs_before_them(make: Make) -> None:
    store = make(8, spare=2, raters_per_pair=1, pairs_per_rater=8, checks_per_rater=1)
    slow = [begin(store) for _ in range(4)]
    states = [store.state(token) for token in slow]
    work(store, begin(store))
    for token, state in zip(slow, states, strict=True):
        end = answer(store, token, state)
        while end.status == "rate":
            end = answer(store, token, end)
        assert end.status in ("ready", "wait")
        assert end.done == 2  # the pair that was leased, and a check


def test_who_fails_the_checks_does_not_count_and_others_get_the_pairs(make: Make) -> None:
    store = make(3, spare=3, raters_per_pair=1, checks_per_rater=2, min_attention=0.5)
    careless = begin(store)
    fail(store, careless)
    assert pair_votes(store).total() == 3
    other = begin(store)
    assert store.state(other).status == "full"  # until the first has finished
    assert store.finish(careless).code
    assert [rater.rejected for rater in store.raters()] == [True, False]
    state = store.state(other)
    while state.item is not None:
        state = answer(store, other, state, "right" if scrambled_side(store, state) == "left" else "left")
    store.finish(other)
    assert [rater.rejected for rater in store.raters()] == [True, False]
    report = read_report(store)
    assert (report.rejected, [rater.counted for rater in report.raters]) == (1, [False, True])
    assert report.comparisons[0].complete == 3
    assert "Of the raters 1 failed the study's attention checks and do not count" in to_markdown(report)
    assert all(sum(pair.votes["quality"].values()) == 1 for pair in report.pairs)


def test_who_fails_the_checks_and_leaves_does_not_count_once_the_lease_is_over(make: Make, clock: Clock) -> None:
    store = make(3, spare=3, raters_per_pair=1, checks_per_rater=2, min_attention=0.5)
    careless = begin(store)
    fail(store, careless)
    late = begin(store)
    assert store.state(late).status == "full"
    clock.now += 11 * 60  # the page is closed, nobody finished
    assert [rater.rejected for rater in store.raters()] == [True, False]
    assert read_report(store).comparisons[0].rated == 0
    state = store.state(late)
    while state.item is not None:
        state = answer(store, late, state, "right" if scrambled_side(store, state) == "left" else "left")
    clock.now += 11 * 60  # who passed counts, finished or not
    assert store.finish(careless).code  # and the one who comes back gets a code, and no vote too many
    assert [(rater.rejected, rater.finished_at is None) for rater in store.raters()] == [(True, False), (False, True)]
    assert all(sum(pair.votes["quality"].values()) == 1 for pair in read_report(store).pairs)


def test_who_comes_too_late_gets_the_code_for_that(make: Make) -> None:
    store = make(1, raters_per_pair=1, checks_per_rater=0, full_code="FULL", completion_code="DONE")
    one, late = begin(store), begin(store)
    state = store.state(one)
    assert (state.code, store.state(late).status, store.state(late).code) == (None, "wait", "FULL")
    answer(store, one, state)
    assert (store.state(late).status, store.state(late).code) == ("full", "FULL")
    assert (store.state(one).code, store.finish(one).code) == (None, "DONE")


def test_where_the_code_is_handed_in() -> None:
    settings = StudySettings(completion_url="https://crowd.example/done?cc={code}")
    assert settings.completion_link("A&B") == "https://crowd.example/done?cc=A%26B"
    assert settings.completion_link(None) is StudySettings().completion_link("A") is None
    for wrong in ("javascript:alert({code})", "https://crowd.example/done", "crowd.example?{code}"):
        with pytest.raises(ValueError, match="with {code} where the code belongs"):
            StudySettings(completion_url=wrong)


def test_what_is_refused(make: Make) -> None:
    store = make(2)
    token = begin(store, "worker-1")
    with pytest.raises(ConflictError, match="has begun already"):
        store.join("worker-1")
    with pytest.raises(UnknownRaterError, match="belongs to nobody"):
        store.state("x")
    with pytest.raises(UnknownItemError, match="nothing at position 1"):
        store.item(token, 1)
    store.state(token)
    with pytest.raises(InputError, match="quality must be one of left, right, got 'same'"):
        store.answer(token, 1, both("same"))
    assert store.votes() == []


def test_ties_where_they_are_allowed(make: Make) -> None:
    store = make(1, allow_ties=True, checks_per_rater=0)
    token = begin(store)
    answer(store, token, store.state(token), "same")
    assert store.votes()[0].answers == {"quality": "same", "faithfulness": "same"}


def test_tokens_are_long_and_not_in_the_database(make: Make, tmp_path: Any) -> None:
    store = make(2)
    tokens = {store.join() for _ in range(50)}
    assert len(tokens) == 50
    assert min(map(len, tokens)) >= 32
    content = b"".join(path.read_bytes() for path in (tmp_path / "study").glob("study.sqlite*"))
    assert not any(token.encode() in content for token in tokens)


def test_what_is_no_study(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="be a folder made by `latent-shift study create`"):
        Store(tmp_path)
    (tmp_path / "study.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match="is no database of a study"):
        Store(tmp_path)
    (tmp_path / "study.sqlite").unlink()
    sqlite3.connect(tmp_path / "study.sqlite").close()
    with pytest.raises(DataError, match="has version 0, this program reads version 3"):
        Store(tmp_path)


def test_a_study_that_lacks_a_table_is_damaged(make: Make, tmp_path: Any) -> None:
    make(2).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "study/study.sqlite")) as database:
        database.execute("DROP TABLE clips")
    with pytest.raises(DataError, match="is no database of a study"):
        Store(tmp_path / "study")


def test_a_crowd_in_two_processes_of_which_many_leave(make: Make, tmp_path: Any, clock: Clock) -> None:
    """Two stores on one database stand for two processes; a third of the raters stops half-way and never returns."""
    store = make(30, pairs_per_rater=10, raters_per_pair=5)
    other = Store(tmp_path / "study", clock)
    start = threading.Barrier(24)
    failures: list[BaseException] = []

    def rate(number: int) -> None:
        mine = (store, other)[number % 2]
        try:
            start.wait()
            token = begin(mine)
            state = mine.state(token)
            while state.status == "rate" and not (number % 3 == 0 and state.done >= 3):
                state = answer(mine, token, state)
        except BaseException as error:
            failures.append(error)

    crowd = [threading.Thread(target=rate, args=(number,)) for number in range(24)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert failures == []
    assert max(pair_votes(store).values()) <= 5
    assert max(pair_votes(store).values()) - min(pair_votes(store).values()) <= 2
    clock.now += 3600
    while (state := work(store, begin(store))).status == "ready":
        pass
    assert state.status == "full"
    assert set(pair_votes(store).values()) == {5}
    assert len(pair_votes(store)) == 30
    assert max(Counter((vote.rater, vote.pair) for vote in store.votes()).values()) == 1
    other.close()


def test_an_answer_that_is_changed_keeps_the_time_that_the_first_took(make: Make, clock: Clock) -> None:
    store = make(2, checks_per_rater=0)
    token = begin(store)
    state = store.state(token)
    clock.now += 7
    answer(store, token, state)
    clock.now += 500
    store.answer(token, 1, both("right"))
    assert [vote.seconds for vote in store.votes()] == [7]


def test_who_was_replaced_stays_rejected_though_the_answers_are_corrected(make: Make, clock: Clock) -> None:
    store = make(3, spare=3, raters_per_pair=1, checks_per_rater=2, min_attention=0.5)
    careless = begin(store)
    done = fail(store, careless).done
    clock.now += 11 * 60
    assert [rater.rejected for rater in store.raters()] == [True]
    for position in range(1, done + 1):
        wrong = scrambled_side(store, State("rate", 0, 0, store.item(careless, position)))
        store.answer(careless, position, both("right" if wrong == "left" else "left"))
    store.finish(careless)
    assert [rater.rejected for rater in store.raters()] == [True]


def test_who_passes_just_as_many_checks_as_are_asked_for_counts(make: Make) -> None:
    store = make(3, spare=3, raters_per_pair=1, checks_per_rater=2, min_attention=0.5)
    token = begin(store)
    state, met = store.state(token), 0
    while state.item is not None:
        scrambled = [
            store.files[clip.file_name(0)].read_bytes()[:1].isdigit() for clip in (state.item.left, state.item.right)
        ]
        met += any(scrambled)
        state = answer(
            store, token, state, "left" if scrambled[met == 1] else "right"
        )  # the first check alone is right
    assert met == 2
    store.finish(token)
    assert [rater.rejected for rater in store.raters()] == [False]
