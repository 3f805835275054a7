"""What a result was measured on: nothing in it names the machine or its folders. Needs torch alone."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

__all__ = ["ROOT", "hardware"]

ROOT = Path(__file__).resolve().parent.parent


def hardware(device: torch.device) -> dict[str, str | int]:
    """Device, driver, versions, threads and commit."""
    on_gpu = device.type == "cuda"
    found: dict[str, str | int] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "processors": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _first_line("git", "describe", "--always", "--dirty"),
    }
    if on_gpu:
        query = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"cuda": str(torch.version.cuda), "driver": query}
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "cpu"


def _first_line(*command: str) -> str:
    """The first line that a command prints; empty where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip().partition("\n")[0]
