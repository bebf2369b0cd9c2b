"""Weights go into a network whole: every key fits, or the first one that does not is named."""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch import Tensor, nn

from latent_shift.core.errors import InputError


def load_exactly(
    network: nn.Module,
    state: Mapping[str, Tensor],
    name: str = "weights",
    optional: Set[str] = frozenset(),
    assign: bool = False,
) -> None:
    """Loads weights of exactly the network's keys and shapes.

    Args:
        network: what they are for.
        state: the weights.
        name: what messages call them.
        optional: keys that may be missing, all of them at once, and stay as they are.
        assign: whether the network takes the tensors themselves, with their dtype and memory, and does not copy.

    Raises:
        InputError: a `ValueError`, for a key that is missing or unexpected, or a shape that differs; names it.
    """
    own = network.state_dict()
    missing = own.keys() - state.keys()
    if optional <= missing:
        missing -= optional
    for kind, keys in (("missing", missing), ("unexpected", state.keys() - own.keys())):
        if keys:
            raise InputError(name, f"{kind} {min(keys)}", f"fit {type(network).__name__}")
    for key, tensor in state.items():
        if tensor.shape != own[key].shape:
            raise InputError(f"{name}, {key}", tuple(tensor.shape), f"have the shape {tuple(own[key].shape)}")
    network.load_state_dict(state, strict=False, assign=assign)
