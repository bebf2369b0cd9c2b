from __future__ import annotations

import json
from pathlib import Path

from .conftest import Refused, Run


def test_there_and_back(run: Run, tmp_path: Path) -> None:
    from latent_shift.pipelines import load_preset

    load_preset("tiny", "cpu", "fp32").save_pretrained(tmp_path / "tiny")
    result = run("convert", tmp_path / "tiny", "vdm", "--to", "vdm", "--json")
    assert result.code == 0
    made = json.loads(result.out)
    assert made["pipeline"] == "LatentShiftPipeline"
    assert made["new_parameters"] > 0
    assert made["parameters"]["unet"] > made["new_parameters"]
    result = run("convert", "vdm", "image", "--to", "image")
    assert result.code == 0
    assert result.out.startswith("image: a LDMTextToImagePipeline\n")
    assert (Path("image") / "vqvae" / "diffusion_pytorch_model.safetensors").is_file()
    result = run("generate", "a red heart", "--model", "vdm", "--steps", "1", "--frames", "2", "-o", "clip.gif")
    assert result.code == 0


def test_refusals_are_one_line(refused: Refused) -> None:
    line = refused("convert", "emoji", "out", "--to", "film")
    assert line == "--to must be one of shift, vdm, image, got 'film'"
    line = refused("convert", "nowhere/at-all/here", "out", "--to", "shift")
    assert line.startswith("source must be a folder, or a name of the hub that can be reached (")
    line = refused("convert", "missing.ckpt", "out", "--to", "shift")
    assert line == "source must be there: no such file, got 'missing.ckpt'"
    line = refused("convert", "emoji", "out", "--to", "image")
    assert "PatchAutoencoderKL" in line
    Path("r.toml").write_text("steps = 1\n")
    expected = "r.toml cannot be loaded: it is no checkpoint, neither .safetensors nor of torch.save"
    assert refused("convert", "r.toml", "out", "--to", "shift") == expected
    assert refused("convert", "emoji", "r.toml", "--to", "vdm") == "DEST must be a folder; it is a file, got 'r.toml'"
    line = refused("convert", "emoji", "r.toml/out", "--to", "vdm")
    assert line.startswith("DEST must be in a folder that can be written (")
    line = refused("convert", "emoji", "out", "--to", "vdm", "--prediction-type", "epsilon")
    assert line.startswith("--prediction-type must be given for single files only")
    line = refused("convert", "emoji", "out", "--to", "vdm", "--seed", 2**64)
    assert line == f"--seed must be a whole number of 64 bits, got {2**64}"
