"""Names of series in a PromQL expression."""

import re

KEYWORDS = {"and", "or", "unless", "on", "by", "without", "ignoring", "group_left", "group_right", "bool", "offset"}
IDENTIFIER = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def series_of(expression: str) -> set[str]:
    """What is neither a label, a function, a keyword nor a duration."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    found = IDENTIFIER.finditer(bare)
    return {name[0] for name in found if name[0] not in KEYWORDS and not bare[name.end() :].lstrip().startswith("(")}
