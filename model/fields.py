"""Types of checked fields, and how every configuration checks them."""

from typing import Annotated

from pydantic import ConfigDict, Field

# Strict: a quoted number or a truth value is a slip of the pen, not a number.
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
MAX_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED, strict=True)]

CHECKED = ConfigDict(extra="forbid", validate_by_name=True, serialize_by_alias=True)
