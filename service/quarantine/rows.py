"""Items <-> rows, and filters -> conditions on them."""

from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import ColumnElement, RowMapping

from service.quarantine.records import Filter, Item
from service.quarantine.tables import items


def item_of(row: RowMapping) -> Item:
    return Item.model_validate({**row, "evidence": from_json(row["evidence"])})


def row_of(item: Item) -> dict[str, Any]:
    row = item.model_dump()
    evidence = to_json(row["evidence"], inf_nan_mode="constants").decode()
    return {**row, "evidence": evidence, "why": item.why.value, "state": item.state.value}


def conditions(chosen: Filter) -> list[ColumnElement[bool]]:
    equal = {
        items.c.state: chosen.state,
        items.c.label: chosen.label,
        items.c.model_name: chosen.model,
        items.c.model_version: chosen.version,
        items.c.flagged: chosen.flagged,
        items.c.why: chosen.why,
        items.c.request_id: chosen.request_id,
        items.c.digest: chosen.digest,
    }
    found = [column == value for column, value in equal.items() if value is not None]
    if chosen.since is not None:
        found.append(items.c.judged_at >= chosen.since)
    if chosen.until is not None:
        found.append(items.c.judged_at < chosen.until)
    if chosen.p_value_at_most is not None:
        found.append(items.c.p_value <= chosen.p_value_at_most)
    return found
