"""What an evaluation ran on: bundle, versions and hardware."""

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as library_version
from typing import Any

import torch

from detectors.evaluation.inputs import Inputs

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


def bundle_facts(inputs: Inputs) -> dict[str, Any]:
    """The bundle, as results.json names it."""
    manifest = inputs.manifest
    return {
        "path": str(inputs.bundle),
        "name": manifest.name,
        "version": manifest.version,
        "labels": list(manifest.labels),
        "image_shape": list(manifest.image_shape),
        "detectors": list(manifest.detectors),
        "fused": list(manifest.fused),
        "false_alarm_rate": manifest.false_alarm_rate,
        "calibration_sizes": manifest.calibration_sizes,
        "measured_accuracy": manifest.measured.get("accuracy"),
    }
