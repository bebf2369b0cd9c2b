from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from latent_shift.core.errors import InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.data import order as order_module
from latent_shift.data.order import SampleOrder

GROUPS = ["heart"] * 3 + ["hand"] * 2 + ["dog"] + ["hand"] * 2
SIZES = {"heart": 3, "hand": 4, "dog": 1}


def stream(order: SampleOrder, epochs: int) -> list[int]:
    return [order.record(position) for position in range(epochs * len(order))]


def test_a_position_gives_the_same_record_whatever_was_asked_before() -> None:
    expected = stream(SampleOrder(GROUPS, 7), 24)
    positions = list(range(len(expected)))
    random.Random(0).shuffle(positions)
    order = SampleOrder(GROUPS, 7)
    assert {position: order.record(position) for position in positions} == dict(enumerate(expected))
    assert [SampleOrder(GROUPS, 7).record(position) for position in (40, 3)] == [expected[40], expected[3]]


def test_numpys_integers_are_positions_too() -> None:
    order = SampleOrder(GROUPS, 7)
    assert [order.record(position) for position in np.arange(12)] == stream(order, 4)


def test_the_order_is_this_for_ever() -> None:
    """A changed rule would change what a run goes on with after an update."""
    assert stream(SampleOrder(GROUPS, 0), 4) == [3, 5, 0, 5, 6, 2, 5, 7, 1, 5, 2, 4]


def test_another_seed_is_another_order() -> None:
    orders = {tuple(stream(SampleOrder(GROUPS, seed), 12)) for seed in range(5)}
    assert len(orders) == 5


def test_each_group_comes_once_an_epoch() -> None:
    order = SampleOrder(GROUPS, 3)
    assert len(order) == 3
    for epoch in range(20):
        seen = [GROUPS[order.record(3 * epoch + offset)] for offset in range(3)]
        assert sorted(seen) == sorted(SIZES)


@pytest.mark.parametrize("group", SIZES)
def test_each_record_comes_once_in_as_many_epochs_as_its_group_has_members(group: str) -> None:
    members = {index for index, name in enumerate(GROUPS) if name == group}
    seen = [record for record in stream(SampleOrder(GROUPS, 3), 24) if record in members]
    size = SIZES[group]
    for start in range(0, 24, size):
        assert set(seen[start : start + size]) == members


def test_epochs_and_turns_are_shuffled_anew() -> None:
    order = SampleOrder(GROUPS, 3)
    epochs = [tuple(GROUPS[record] for record in stream(order, 24)[start : start + 3]) for start in range(0, 72, 3)]
    assert len(set(epochs)) > 3
    hearts = [record for record in stream(order, 24) if record < 3]
    assert len({tuple(hearts[start : start + 3]) for start in range(0, 24, 3)}) > 2


def test_members_of_a_group_are_put_in_order_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[object, ...]] = []
    monkeypatch.setattr(order_module, "derive_seed", lambda *key: drawn.append(key[1:]) or derive_seed(*key))
    stream(SampleOrder(["one"] * 8 + ["other"] * 8, 3), 16)
    assert [key for key in drawn if key[0] == "turn"].count(("turn", 0, 1)) == 1
    assert len([key for key in drawn if key[0] == "turn"]) == 4


def test_a_group_for_each_record_gives_each_record_once_an_epoch() -> None:
    order = SampleOrder(range(10), 1)
    counts = Counter(stream(order, 5))
    assert counts == dict.fromkeys(range(10), 5)
    assert all(set(stream(order, 5)[start : start + 10]) == set(range(10)) for start in range(0, 50, 10))


def test_no_records_are_refused() -> None:
    with pytest.raises(InputError, match="records must be at least one, got 0"):
        SampleOrder([], 0)
