"""The order of samples: a pure function of (seed, position), for any batch size, worker count or rank."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from typing import SupportsIndex

import numpy as np

from latent_shift.core.errors import InputError
from latent_shift.core.seeding import derive_seed


class SampleOrder:
    """An endless stream of record indices in which every group comes once an epoch.

    A group is what should be seen equally often, for example all skin tones of one label. In epoch `e` each group
    gives one of its records: its members take turns in an order drawn anew for each round of turns, so each record
    comes exactly once in `len(members)` epochs. With one group a record, each record comes once an epoch.
    """

    def __init__(self, groups: Sequence[Hashable], seed: int) -> None:
        """Args: groups: for each record, what it is grouped by. seed: the run's seed.

        Raises:
            InputError: if there are no records.
        """
        if not groups:
            raise InputError("records", 0, "be at least one")
        self._seed = seed
        codes = np.arange(len(groups))
        if not isinstance(groups, range):  # of which each is another one
            first: dict[Hashable, int] = {}
            codes = np.fromiter((first.setdefault(group, len(first)) for group in groups), np.int64, len(groups))
        self._members = np.argsort(codes, kind="stable")
        """Record indices, group by group."""
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(codes))])
        self._permutation: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._turns: dict[int, tuple[int, np.ndarray]] = {}
        """For each group the last round of turns, and the order of its members in it."""

    def __len__(self) -> int:
        """Positions in an epoch: the number of groups."""
        return len(self._starts) - 1

    def record(self, position: SupportsIndex) -> int:
        """The record index at `position` of the stream, from 0."""
        epoch, offset = divmod(operator.index(position), len(self))
        if self._permutation[0] != epoch:
            rng = np.random.default_rng(derive_seed(self._seed, "epoch", epoch))
            self._permutation = (epoch, rng.permutation(len(self)))
        group = int(self._permutation[1][offset])
        members = self._members[self._starts[group] : self._starts[group + 1]]
        if len(members) == 1:
            return int(members[0])
        turn, place = divmod(epoch, len(members))
        if self._turns.get(group, (-1,))[0] != turn:
            rng = np.random.default_rng(derive_seed(self._seed, "turn", group, turn))
            self._turns[group] = (turn, rng.permutation(members))
        return int(self._turns[group][1][place])
