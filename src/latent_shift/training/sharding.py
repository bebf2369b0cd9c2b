"""Whole tensors out of a network and an optimiser that may be sharded over processes (FSDP2), and back into them.

What is saved is the same for one process, for several copies (DDP) and for shards, so a run may go on with another
number of processes than it was saved with. Every process must call these functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, whole and on the CPU; those that are there already share their memory."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()
        for name, tensor in tensors.items()
    }


def load_tensors(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Writes whole tensors into `places`, each process what it has of them.

    Raises:
        KeyError: a name is missing.
    """
    with torch.no_grad():
        for name, place in places.items():
            whole = tensors[name].to(place.device)
            if isinstance(place, DTensor):
                whole = distribute_tensor(whole, place.device_mesh, place.placements)
            place.copy_(whole)


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as whole tensors on the CPU, `parameter.quantity`; the first process alone gets it.

    They may share memory with the optimiser. Numbers (bitsandbytes counts steps so) become tensors without axes.
    """
    if _is_torchs(optimizer):
        state: Any = get_optimizer_state_dict(network, optimizer, options=_WHOLE).get("state", {})
    else:
        state = {name: optimizer.state.get(parameter, {}) for name, parameter in _trained(network).items()}
    return {
        f"{parameter}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, quantities in state.items()
        for name, value in quantities.items()
    }


def load_optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `optimizer_tensors` gave; every process needs all of it. The optimiser has one parameter group."""
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, name = key.rsplit(".", 1)
        state.setdefault(parameter, {})[name] = value
    trained = _trained(network)
    if _is_torchs(optimizer):
        (group,) = optimizer.param_groups
        whole: Any = {"state": state, "param_groups": [{**group, "params": list(trained)}]}
        set_optimizer_state_dict(network, optimizer, whole, options=_WHOLE)
        _match_layouts(optimizer)
        return
    for parameter, quantities in state.items():
        place = trained[parameter]
        optimizer.state[place] = {
            name: value.to(place.device) if value.ndim else value.item() for name, value in quantities.items()
        }


def _match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lays moments out as their parameters are: a fused optimiser goes through the memory of both side by side."""
    for parameter, quantities in optimizer.state.items():
        for name, value in quantities.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                quantities[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_torchs(optimizer: torch.optim.Optimizer) -> bool:
    """Whether PyTorch can gather its state. bitsandbytes quantises it, in shapes that are not the parameters'."""
    return type(optimizer).__module__.startswith("torch.")


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
