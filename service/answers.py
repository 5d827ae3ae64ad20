"""Judgements -> the answer's plain dicts; schemas.PredictResponse is their shape."""

from typing import Any

from service.decoding import Batch
from service.engine import Engine
from service.judgements import Judgements


def answer(
    batch: Batch, judgements: Judgements, engine: Engine, *, request_id: str, withhold_flagged: bool
) -> dict[str, Any]:
    judged = iter(_predictions(judgements, engine.labels, withhold_flagged=withhold_flagged))
    predictions = [
        {"error": {"field": fault.field, "detail": fault.detail}} if fault else next(judged)
        for fault in map(batch.faults.get, range(batch.size))
    ]
    return {
        "request_id": request_id,
        "model": {"name": engine.name, "version": engine.version},
        "predictions": predictions,
    }


def _predictions(judgements: Judgements, labels: tuple[str, ...], *, withhold_flagged: bool) -> list[dict[str, Any]]:
    columns = zip(
        judgements.class_index.tolist(),
        judgements.probabilities.max(axis=1).tolist(),
        judgements.log_likelihood.tolist(),
        judgements.p_value.tolist(),
        judgements.flagged.tolist(),
        judgements.evidence_scores.tolist(),
        judgements.evidence_p_values.tolist(),
        strict=True,
    )
    return [
        {
            **_label(class_index, probability, labels, withheld=flagged and withhold_flagged),
            "log_likelihood": log_likelihood,
            "p_value": p_value,
            "flagged": flagged,
            "evidence": {
                name: {"score": score, "p_value": said}
                for name, score, said in zip(judgements.detectors, scores, p_values, strict=True)
            },
        }
        for class_index, probability, log_likelihood, p_value, flagged, scores, p_values in columns
    ]


def _label(class_index: int, probability: float, labels: tuple[str, ...], *, withheld: bool) -> dict[str, Any]:
    if withheld:
        return {"label": None, "class_index": None, "probability": None}
    return {"label": labels[class_index], "class_index": class_index, "probability": probability}
