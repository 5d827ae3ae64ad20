"""What an evaluation ran on: versions and hardware."""

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as library_version
from typing import Any

import torch

LIBRARIES = ("lgm-guard", "torch", "torchvision", "torchattacks", "scikit-learn", "numpy", "matplotlib")


def versions() -> dict[str, str]:
    """Python and the libraries that figures depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = library_version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Where it was measured."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
    }
