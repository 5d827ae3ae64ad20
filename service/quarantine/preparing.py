"""What was captured -> items and their files."""

from collections.abc import Iterator
from datetime import timedelta

from service.quarantine.backlog import Captured
from service.quarantine.files import ImageFile, write_image
from service.quarantine.identity import new_id
from service.quarantine.keeping import Kept
from service.quarantine.records import Item, State, Why
from service.schemas import DetectorSays


def prepare(captured: Captured, *, drawn_as: Why, keeps_bytes: bool, max_age: timedelta) -> Iterator[Kept]:
    """drawn_as: what those of the blind sample are called."""
    for row in range(len(captured)):
        file = write_image(captured.images[row])
        why = drawn_as if captured.drawn[row] else Why.FLAGGED
        yield Kept(
            _item(captured, row, file, why, keeps_bytes=keeps_bytes, max_age=max_age), file if keeps_bytes else None
        )


def _item(captured: Captured, row: int, file: ImageFile, why: Why, *, keeps_bytes: bool, max_age: timedelta) -> Item:
    said = captured.judgements
    class_index = int(said.class_index[row])
    return Item(
        id=new_id(captured.judged_at),
        request_id=captured.request_id,
        digest=file.digest,
        media_type=file.media_type if keeps_bytes else None,
        num_bytes=len(file.content) if keeps_bytes else 0,
        model_name=captured.model_name,
        model_version=captured.model_version,
        class_index=class_index,
        label=captured.labels[class_index],
        probability=float(said.probabilities[row].max()),
        log_likelihood=float(said.log_likelihood[row]),
        p_value=float(said.p_value[row]),
        flagged=bool(said.flagged[row]),
        false_alarm_rate=captured.false_alarm_rate,
        evidence={
            name: DetectorSays.model_construct(
                score=float(said.evidence_scores[row, column]), p_value=float(said.evidence_p_values[row, column])
            )
            for column, name in enumerate(said.detectors)
        },
        why=why,
        principal=captured.principal,
        judged_at=captured.judged_at,
        expires_at=captured.judged_at + max_age,
        state=State.NEW,
        reviewer=None,
        reason=None,
        reviewed_at=None,
        revision=1,
    )
