"""Flagged inputs, kept for a person to review: rows in SQL, bytes in a store by digest.

The dashboard and the routes ask `Quarantine`; what is kept comes through `Capture`, after its answer has left.
"""

from service.quarantine.quarantine import Quarantine
from service.quarantine.records import AuditLine, Filter, Item, Page, State, Why

__all__ = ["AuditLine", "Filter", "Item", "Page", "Quarantine", "State", "Why"]
