"""Randomness as a function of (seed, names...), never of batch size, worker count or rank."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: int | str) -> int:
    """A 63-bit seed that depends on `seed` and every name, and on nothing else.

    Args:
        seed: the run's seed.
        names: what the randomness is for, for example `"noise", step, sample_index`.

    Returns:
        An integer in [0, 2**63), equal on every machine and Python version.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def hash_fraction(*names: int | str) -> float:
    """A number in [0, 1) that depends on the names alone: the stated rule behind every split and pick."""
    return derive_seed(0, *names) / 2**63
