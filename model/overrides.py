"""Changes of a configuration while it is still tables: another loss, another value."""

import tomllib
from collections.abc import Mapping
from typing import Any

from model.errors import ConfigurationError
from model.losses import known

LONGEST_NAME = 64  # of a run


def with_loss(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tables with another loss: its own defaults but for L-GM's schedules, and a run's name that says so.

    A rival's Gaussians are fitted after training, and unit variances would fit nothing: they become diagonal.
    """
    loss, mixture = _table(values, "loss"), _table(values, "mixture")
    kept = [option for option in known.GAUSSIAN_OPTIONS.get(name, ()) if option in loss]
    changed = {**values, "loss": {"name": name, **{option: loss[option] for option in kept}}}
    if name != known.DEFAULT and isinstance(values.get("name"), str):
        changed["name"] = f"{values['name'][: LONGEST_NAME - len(name) - 1]}-{name}"
    if name in known.RIVALS and mixture.get("variance", "unit") == "unit":
        changed["mixture"] = {**mixture, "variance": "diagonal"}
    return changed


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{name} must be a table, got {table!r}")
    return table


def set_value(values: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The tables with another value at table.key; what was given is not changed.

    Raises ConfigurationError where table is none.
    """
    table, dot, rest = key.partition(".")
    if not dot:
        return {**values, key: value}
    return {**values, table: set_value(_table(values, table), rest, value)}


def apply(values: dict[str, Any], override: str) -> None:
    """Set what "table.key=value" says, in place. Raises ConfigurationError where it says nothing."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigurationError(f"override {override!r} must look like table.key=value")
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"override {override!r}: {table} is not a table")
    try:
        values[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[last] = text.strip()
