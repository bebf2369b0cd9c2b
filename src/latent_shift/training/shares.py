"""What one process learns from in each step: its share of the batch, read in this process or ahead of it by workers.

A worker that meets an error, or a file that cannot be read, hands it over as a value: the process that trains then
raises, or counts, what would else end as a traceback in another process, or be known there alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset

from latent_shift.core.errors import InputError, LatentShiftError

from .config import Recipe


@dataclass(frozen=True)
class Group:
    """Rows of a step's batch that are of one kind, and are drawn and computed together.

    Attributes:
        rows: which, of all of the batch, over all processes.
        option: of the recipe, that says how many they are.
        weight: of the mean of their losses in the step's loss; those of a step's groups sum to 1.
    """

    rows: range
    option: str = "batch_size"
    weight: float = 1.0


@runtime_checkable
class Batches(Protocol):
    """What the steps of a stage learn from: data alone and no network, so that worker processes may draw it."""

    def groups(self, step: int) -> Sequence[Group]:
        """The batch of optimiser step `step`, by kind."""

    def draw(self, step: int, rows: range) -> Any:
        """These rows of it, all of one group, on the CPU; a function of (seed, step, rows)."""

    def names(self, step: int, rows: range) -> list[str]:
        """What the rows are of: file names, for messages. Right after `draw`: of what it has read."""

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Files that could not be read so far, in this process, and why."""


@dataclass(frozen=True)
class Part:
    """A micro-batch.

    Attributes:
        names: the files of its rows.
        batch: what `Batches.draw` gave.
        weight: of each row's loss in the step's, which is a sum over all rows of all processes.
    """

    names: list[str]
    batch: Any
    weight: float


@dataclass(frozen=True)
class Share:
    """What one process learns from in one step.

    Attributes:
        parts: its micro-batches.
        quarantined: files that could not be read since the share before, and why.
        error: why there are no parts.
    """

    parts: list[Part]
    quarantined: dict[str, str] = field(default_factory=dict)
    error: LatentShiftError | None = None


class Shares(Dataset[Share]):
    """For each step the part of its batch that is one process's. A copy of it lives in each worker."""

    def __init__(self, batches: Batches, processes: int, index: int, recipe: Recipe) -> None:
        """Draws nothing yet.

        Args:
            batches: what is shared out.
            processes: how many learn together.
            index: which of them this is.
            recipe: the run's.

        Raises:
            InputError: a batch cannot be shared out equally.
        """
        self._batches, self._processes, self._index, self._most = batches, processes, index, recipe.micro_batch_size
        self._told: set[str] = set()
        for step in range(min(recipe.steps, 1000)):
            for group in batches.groups(step):
                if len(group.rows) % processes:
                    expected = f"be a multiple of the number of processes, {processes}"
                    raise InputError(group.option, len(group.rows), expected)

    def __getitem__(self, step: int) -> Share:
        """The share of a step."""
        parts, error = [], None
        try:
            for group in self._batches.groups(step):
                size = len(group.rows) // self._processes
                mine, most = group.rows[size * self._index :][:size], self._most or size
                for row in range(0, size, most):
                    rows = mine[row : row + most]
                    batch = self._batches.draw(step, rows)
                    names = self._batches.names(step, rows)
                    parts.append(Part(names, batch, group.weight / len(group.rows)))
        except LatentShiftError as caught:
            parts, error = [], caught
        new = {file: reason for file, reason in self._batches.quarantined.items() if file not in self._told}
        self._told.update(new)
        return Share(parts, new, error)


def load_shares(shares: Shares, start: int, recipe: Recipe, accelerator: Accelerator) -> Iterator[Share]:
    """The shares of the steps from `start`; worker processes draw ahead where the recipe has some."""
    workers = recipe.workers
    if workers is None:
        workers = 0 if accelerator.device.type == "cpu" else 4
    steps: Any = range(start, recipe.steps)
    return iter(DataLoader(shares, batch_size=None, sampler=steps, num_workers=workers, collate_fn=_as_is))


def _as_is(share: Any) -> Any:
    return share
