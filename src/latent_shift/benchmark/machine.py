"""What the numbers were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from latent_shift import __version__

_CPU = Path("/proc/cpuinfo")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Date, device, processor, threads, load, and the versions of everything that computes."""
    cpu = re.search(r"model name\s*:\s*(.+)", _CPU.read_text(encoding="utf-8")) if _CPU.exists() else None
    processor = cpu[1] if cpu else platform.processor() or platform.machine()
    one_dnn = re.search(r"v(\d+\.\d+\.\d+)", torch.__config__.show().partition("MKL-DNN")[2])
    cudnn: Any = torch.backends.cudnn
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}: {processor}",
        "machine": {
            "processor": processor,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "load_average_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "system": platform.platform(),
        },
        "versions": {
            "latent_shift": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers")},
            "onednn": one_dnn[1] if one_dnn else None,
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version() if device.type == "cuda" else None,
        },
    }
