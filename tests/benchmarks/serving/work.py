"""What every rival is given to serve: bytes -> images -> verdicts -> an answer with all that ours says."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors import Screener, Verdicts, load_bundle
from model.image_set import to_unit
from model.image_tensors import decode_image

BUNDLE, THREADS, WORKERS = "LGM_BENCHMARK_BUNDLE", "LGM_BENCHMARK_THREADS", "LGM_BENCHMARK_WORKERS"
PNG_SIGNATURE = b"\x89PNG"
MAX_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Work:
    """A bundle's screener and its input's forms: a PNG file, or raw float32 images (n, c, h, w)."""

    screener: Screener

    @classmethod
    def from_environment(cls) -> "Work":
        """Load the bundle in the process that judges, with the threads it is to have, and warm it."""
        torch.set_num_threads(int(os.environ[THREADS]))
        work = cls(load_bundle(Path(os.environ[BUNDLE])))
        for size in (1, MAX_BATCH_SIZE):
            work.screener.screen(torch.zeros(size, *work.screener.image_format.shape))
        return work

    def read(self, data: bytes) -> Tensor:
        """Images (n, c, h, w) in [0, 1]."""
        if data.startswith(PNG_SIGNATURE):
            return to_unit(decode_image(data, self.screener.image_format)).unsqueeze(0)
        pixels = np.frombuffer(data, dtype=np.float32).reshape(-1, *self.screener.image_format.shape)
        return torch.from_numpy(pixels.copy())

    def screen(self, requests: Sequence[Tensor]) -> Verdicts:
        """Screen the images of all requests as one batch."""
        return self.screener.screen(torch.cat(list(requests)))

    def judge(self, requests: Sequence[Tensor]) -> list[list[dict[str, Any]]]:
        """The same; each request's predictions."""
        predictions = iter(self._predictions(self.screen(requests)))
        return [[next(predictions) for _ in images] for images in requests]

    def _predictions(self, verdicts: Verdicts) -> list[dict[str, Any]]:
        said = columns(verdicts)
        rows = zip(*said.values(), strict=True)
        predictions = [dict(zip(said, row, strict=True)) for row in rows]
        for prediction in predictions:
            prediction["label"] = self.screener.labels[prediction["class_index"]]
            prediction["evidence"] = {
                name: {"score": prediction.pop(f"{name}.score"), "p_value": prediction.pop(f"{name}.p_value")}
                for name in verdicts.evidence
            }
        return predictions


def columns(verdicts: Verdicts) -> dict[str, list[Any]]:
    """All that is said, one list a name, as Python's own numbers."""
    said = {
        "class_index": verdicts.class_index,
        "probability": verdicts.probabilities.amax(dim=1),
        "log_likelihood": verdicts.log_likelihood,
        "p_value": verdicts.p_value,
        "flagged": verdicts.flagged,
    }
    for name, evidence in verdicts.evidence.items():
        said |= {f"{name}.score": evidence.score, f"{name}.p_value": evidence.p_value}
    return {name: values.tolist() for name, values in said.items()}
