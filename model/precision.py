"""The precision that the backbone runs in."""

import logging
import platform
from contextlib import AbstractContextManager
from typing import Any

import torch

from model.config import TrainingConfig

X86 = {"x86_64", "amd64"}

_log = logging.getLogger(__name__)


def autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 for the backbone: by itself where a CUDA device has it, on a CPU where it is asked for."""
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = config.precision == "bfloat16" or (config.precision == "auto" and gains)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def warn_of_emulation(config: TrainingConfig, device: torch.device) -> None:
    """Where bfloat16 is asked of a processor that does not have it, convolutions take many times longer."""
    if config.precision == "bfloat16" and device.type == "cpu" and not _has_bfloat16():
        _log.warning(
            "training.precision: this processor has no bfloat16, which is then many times slower than float32; "
            "--set training.precision=float32"
        )


def _has_bfloat16() -> bool:
    """As far as can be told: x86 processors say so."""
    if platform.machine().lower() not in X86:
        return True
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
