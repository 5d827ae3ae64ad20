"""Ids that rise with the time (UUID version 7), so that the newest come first by an index that is there anyway."""

import re
import secrets
from datetime import datetime

PATTERN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_id(moment: datetime) -> str:
    milliseconds = int(moment.timestamp() * 1000)
    digits = f"{milliseconds:012x}7{secrets.randbits(12):03x}{8 + secrets.randbits(2):x}{secrets.randbits(60):015x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def is_id(text: str) -> bool:
    return PATTERN.fullmatch(text) is not None
