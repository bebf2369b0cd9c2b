"""Tensors of a network that is sharded over processes (FSDP2), whole on the way out and in shards on the way back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latent_shift.training.sharding import full_tensors, load_optimizer_tensors, load_tensors, optimizer_tensors

SCRIPT = """
import sys
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training.test_sharding import make, step
from latent_shift.training.sharding import full_tensors, load_optimizer_tensors, load_tensors, optimizer_tensors

folder = sys.argv[1]
mesh = init_device_mesh("cpu", (2,))
network, _ = make()
fully_shard(network, mesh=mesh)
optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
load_tensors(dict(network.named_parameters()), load_file(f"{folder}/network.safetensors"))
load_optimizer_tensors(network, optimizer, load_file(f"{folder}/optimizer.safetensors"))
assert network[0].weight.to_local().shape == (4, 4)
step(network, optimizer)
weights, state = full_tensors(dict(network.named_parameters())), optimizer_tensors(network, optimizer)
if mesh.get_rank() == 0:
    save_file(weights, f"{folder}/network2.safetensors")
    save_file({name: value.contiguous() for name, value in state.items()}, f"{folder}/optimizer2.safetensors")
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def make() -> tuple[torch.nn.Sequential, torch.optim.AdamW]:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2))
    return network, torch.optim.AdamW(network.parameters(), lr=0.1)


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.arange(12.0).reshape(3, 4)).square().sum().backward()
    optimizer.step()


def test_an_optimizer_comes_back_bit_for_bit() -> None:
    network, optimizer = make()
    for _ in range(3):
        step(network, optimizer)
    weights, state = full_tensors(dict(network.named_parameters())), optimizer_tensors(network, optimizer)
    names = [f"{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")]
    assert set(state) == {f"{name}.{quantity}" for name in names for quantity in ("step", "exp_avg", "exp_avg_sq")}
    state = {name: value.clone() for name, value in state.items()}
    other, resumed = make()
    other[0].weight.data.fill_(7.0)
    load_tensors(dict(other.named_parameters()), weights)
    load_optimizer_tensors(other, resumed, state)
    for pair in ((network, optimizer), (other, resumed)):
        step(*pair)
    assert all(torch.equal(left, right) for left, right in zip(network.parameters(), other.parameters(), strict=True))
    with pytest.raises(KeyError):
        load_tensors(dict(other.named_parameters()), {})


def test_shards_of_two_processes_are_whole_tensors_on_disk(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network, optimizer = make()
    for _ in range(3):
        step(network, optimizer)
    save_file(full_tensors(dict(network.named_parameters())), tmp_path / "network.safetensors")
    save_file(optimizer_tensors(network, optimizer), tmp_path / "optimizer.safetensors")
    step(network, optimizer)
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    for name, expected in (
        ("network2", full_tensors(dict(network.named_parameters()))),
        ("optimizer2", optimizer_tensors(network, optimizer)),
    ):
        made = load_file(tmp_path / f"{name}.safetensors")
        assert made.keys() == expected.keys()
        for key in made:
            torch.testing.assert_close(made[key], expected[key], rtol=1e-5, atol=1e-6)
