"""Tensors of a network that is sharded over processes (FSDP2), whole on the way out and in shards on the way back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from latent_shift.core.errors import InputError
from latent_shift.media import read_video
from latent_shift.training import train
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.report import read_log
from latent_shift.training.run import _check_launch, _make_stage
from latent_shift.training.sharding import full_tensors, load_optimizer_tensors, load_tensors, optimizer_tensors
from latent_shift.training.sources import TrainingData

from .conftest import MakeRecipe

SCRIPT = """
import gc
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
del network, optimizer, mesh, weights, state  # whose groups Gloo would else end together with the interpreter
gc.collect()
torch.distributed.destroy_process_group()
"""


RUN = """
import json, sys
from types import SimpleNamespace
import torch
from accelerate import Accelerator
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch.distributed.fsdp import fully_shard
from latent_shift.core.config import parse_config
from latent_shift.training import Recipe, run

class Sharding(Accelerator):
    # What Accelerate does on GPUs (its FSDP plugin does not run on CPUs): blocks and the root, then the optimiser.
    def prepare(self, losses, optimizer):
        for module in list(losses.modules()):
            if isinstance(module, (BasicTransformerBlock, ResnetBlock2D)):
                fully_shard(module)
        fully_shard(losses)
        (group,) = optimizer.param_groups
        group["params"] = [parameter for parameter in losses.parameters() if parameter.requires_grad]
        return losses, SimpleNamespace(optimizer=optimizer)

run.make_accelerator = lambda recipe: Sharding(cpu=True)
run.train(parse_config(Recipe, json.load(open(sys.argv[1]))))
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


def test_moments_are_laid_out_as_their_parameters() -> None:
    def make_convolution() -> tuple[torch.nn.Conv2d, torch.optim.AdamW]:
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return network, torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)

    def step_convolution(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(torch.arange(75.0).reshape(1, 3, 5, 5) / 75).square().sum().backward()
        optimizer.step()

    network, optimizer = make_convolution()
    for _ in range(3):
        step_convolution(network, optimizer)
    saved = optimizer_tensors(network, optimizer)
    state = {name: value.clone(memory_format=torch.contiguous_format) for name, value in saved.items()}
    other, resumed = make_convolution()
    load_tensors(dict(other.named_parameters()), {name: one.clone() for name, one in network.named_parameters()})
    load_optimizer_tensors(other, resumed, state)
    assert resumed.state[other.weight]["exp_avg"].stride() == other.weight.stride()
    for pair in ((network, optimizer), (other, resumed)):
        step_convolution(*pair)
    assert torch.equal(network.weight, other.weight)


def test_shards_of_two_processes_are_whole_tensors_on_disk(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network, optimizer = make()
    for _ in range(3):
        step(network, optimizer)
    save_file(full_tensors(dict(network.named_parameters())), tmp_path / "network.safetensors")
    save_file(optimizer_tensors(network, optimizer), tmp_path / "optimizer.safetensors")
    step(network, optimizer)
    (tmp_path / "script.py").write_text(SCRIPT)
    launch(tmp_path / "script.py", str(tmp_path))
    for name, expected in (
        ("network2", full_tensors(dict(network.named_parameters()))),
        ("optimizer2", optimizer_tensors(network, optimizer)),
    ):
        made = load_file(tmp_path / f"{name}.safetensors")
        assert made.keys() == expected.keys()
        for key in made:
            torch.testing.assert_close(made[key], expected[key], rtol=1e-5, atol=1e-6)


def launch(script: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path)), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 2}}], ids=["all weights", "lora"])
def test_a_sharded_run_draws_saves_goes_on_and_exports_as_one_process_does(
    make_recipe: MakeRecipe, tmp_path: Path, options: dict[str, Any]
) -> None:
    common: dict[str, Any] = {"log_every": 1, "image_batch_size": 2, "keep_every": 2, **options}
    whole = make_recipe("video", "whole", steps=4, **common)
    train(whole)
    (tmp_path / "script.py").write_text(RUN)
    for steps in (2, 4):  # the second one goes on where the first ended
        sharded = make_recipe("video", "sharded", steps=steps, **common)
        (tmp_path / "recipe.json").write_text(sharded.model_dump_json())
        launch(tmp_path / "script.py", str(tmp_path / "recipe.json"))
    one, two = (latest_checkpoint(Path(recipe.output) / "checkpoints") for recipe in (whole, sharded))
    assert one is not None
    assert two is not None
    assert one[0].keys() == two[0].keys()
    for group in one[0]:
        assert one[0][group].keys() == two[0][group].keys()
    made = [
        load_file(Path(recipe.output) / "model/unet/diffusion_pytorch_model.safetensors") for recipe in (whole, sharded)
    ]
    assert made[0].keys() == made[1].keys()
    losses = [[row["loss"] for row in read_log(Path(recipe.output) / "log.jsonl")] for recipe in (whole, sharded)]
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=1e-4)
    for name in ("00.webp", "01.webp", "sheet.png"):
        frames = [
            read_video(Path(recipe.output) / "previews/step_00000004" / name).frames.astype(int)
            for recipe in (whole, sharded)
        ]
        assert abs(frames[0] - frames[1]).mean() < 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (DistributedType.FSDP, r"^--fsdp_version must be 2 \(accelerate launch --use_fsdp --fsdp_version 2\), got 1$"),
        (DistributedType.DEEPSPEED, r"^accelerate launch must use --multi_gpu, or --use_fsdp .*, got 'DEEPSPEED'$"),
        (DistributedType.MEGATRON_LM, r"^accelerate launch must use --multi_gpu, or --use_fsdp .*, got 'MEGATRON_LM'$"),
    ],
)
def test_what_this_trainer_cannot_gather_is_refused(
    kind: DistributedType, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(InputError, match=message):
        _check_launch(accelerator)


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.FSDP])
def test_copies_and_fsdp2_are_taken(kind: DistributedType, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    _check_launch(accelerator)


def test_an_autoencoder_is_not_sharded(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    recipe = make_recipe("autoencoder")
    with pytest.raises(InputError, match=r"^stage must be image or video where the network is sharded \(FSDP\), got"):
        _make_stage(recipe, accelerator, TrainingData(recipe))
