"""Who asks a processor for what it does not have is told so, and nobody else is."""

import logging

import pytest
import torch

from model import precision
from model.config import TrainingConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "machine", "capabilities", "warned"),
    [
        ("bfloat16", "x86_64", {"avx2": True}, True),
        ("bfloat16", "AMD64", {"avx512_bf16": False, "amx_bf16": False}, True),
        ("bfloat16", "x86_64", {"avx512_bf16": True}, False),
        ("bfloat16", "x86_64", {"amx_bf16": True}, False),
        ("bfloat16", "arm64", {}, False),
        ("float32", "x86_64", {}, False),
        ("auto", "x86_64", {}, False),
    ],
)
def test_emulation_is_told(asked, machine, capabilities, warned, monkeypatch, caplog):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with caplog.at_level(logging.WARNING):
        precision.warn_of_emulation(TrainingConfig(epochs=1, batch_size=2, precision=asked), CPU)
    assert [("training.precision" in record.getMessage()) for record in caplog.records] == [True] * warned


def test_only_what_is_asked_for_runs_in_bfloat16_on_a_cpu():
    found = {}
    for asked in ("auto", "float32", "bfloat16"):
        with precision.autocast(TrainingConfig(epochs=1, batch_size=2, precision=asked), CPU):
            found[asked] = torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype
    assert found == {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}
