"""What the quarantine tells: items, pages of them, and the lines of their audit."""

from datetime import UTC, datetime
from enum import StrEnum

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from service.schemas import DetectorSays


class State(StrEnum):
    """Where the review of an item stands."""

    NEW = "new"
    IN_REVIEW = "in_review"
    CONFIRMED_ADVERSARIAL = "confirmed_adversarial"  # made to be misread
    ABNORMAL = "abnormal"  # of no class, damaged, or from elsewhere, but nobody's doing
    FALSE_POSITIVE = "false_positive"  # flagged, and yet an ordinary input
    RELEASED = "released"  # ordinary and not flagged, or closed without a finding


UNREVIEWED = (State.NEW, State.IN_REVIEW)
VERDICTS = (State.CONFIRMED_ADVERSARIAL, State.ABNORMAL, State.FALSE_POSITIVE, State.RELEASED)

# From a verdict the way to another leads through a new review, so that the audit tells that there was one.
TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.NEW: (State.IN_REVIEW, *VERDICTS),
    State.IN_REVIEW: (State.NEW, *VERDICTS),
    **dict.fromkeys(VERDICTS, (State.IN_REVIEW,)),
}


class Why(StrEnum):
    """Why an item was kept. Those of the sample were drawn blindly, whatever the verdict on them was."""

    FLAGGED = "flagged"
    SAMPLED = "sampled"
    ALL = "all"


# PostgreSQL's text holds every character but one.
NO_NUL = r"^[^\x00]*$"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Item(Record):
    """One image that was judged, as it was judged then. Times are UTC."""

    id: str = Field(description="Rises with the time.")
    request_id: str
    digest: str = Field(description="SHA-256 of the kept file; of its pixels' file where only the row is kept.")
    media_type: str | None = Field(
        description="image/png, or application/x-npy of pixels beyond 8 bit; null: no bytes are kept."
    )
    num_bytes: int
    model_name: str
    model_version: str
    class_index: int
    label: str
    probability: float
    log_likelihood: float
    p_value: float
    flagged: bool
    false_alarm_rate: float
    evidence: dict[str, DetectorSays]
    why: Why
    principal: str = Field(description="Who sent it: a key's id, or an address where there are no keys.")
    judged_at: datetime
    expires_at: datetime
    state: State
    reviewer: str | None
    reason: str | None
    reviewed_at: datetime | None
    revision: int = Field(description="Grows with each review; PATCH names the one it was decided on.")


class Filter(Record):
    """Which items: those that fit all that is given."""

    state: State | None = Field(default=None, description="The state of the review.")
    label: str | None = Field(default=None, max_length=256, pattern=NO_NUL, description="The predicted label.")
    model: str | None = Field(default=None, max_length=256, pattern=NO_NUL, description="The model's name.")
    version: str | None = Field(default=None, max_length=64, pattern=NO_NUL, description="The model's version.")
    flagged: bool | None = Field(default=None, description="Whether it was flagged.")
    why: Why | None = Field(default=None, description="Why it was kept.")
    since: AwareDatetime | None = Field(default=None, description="Judged then or later, as 2030-01-31T12:00:00Z.")
    until: AwareDatetime | None = Field(default=None, description="Judged before.")
    p_value_at_most: float | None = Field(default=None, ge=0, le=1, description="The greatest p-value.")
    request_id: str | None = Field(
        default=None, max_length=64, pattern=NO_NUL, description="Of the request that brought it."
    )
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="SHA-256 of the kept file.")

    @field_validator("since", "until")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        try:
            return moment if moment is None else moment.astimezone(UTC)
        except OverflowError:
            raise ValueError("lies outside the years 1 to 9999 of UTC") from None


class Page(Record):
    """Items, the newest first."""

    items: tuple[Item, ...]
    next_cursor: str | None = Field(description="Asks for the page behind this one; null on the last.")


class AuditLine(Record):
    """Who did what to an item; lines are added and never changed."""

    at: datetime
    item_id: str
    who: str = Field(description="A key's id, an address, or retention, which deletes what is too old or too much.")
    action: str = Field(description="reviewed, deleted or expired.")
    from_state: State
    to_state: State | None
    reason: str | None
