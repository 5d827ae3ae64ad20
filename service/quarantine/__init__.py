"""Flagged inputs, kept for a person to review: rows in SQL, bytes in a store by digest.

The routes ask `quarantine.Quarantine`; what is kept comes through `Capture`, after its answer has left. What is told
of it, the records, loads neither a database nor a network.
"""

from service.quarantine.records import AuditLine, Filter, Item, Page, State, Why

__all__ = ["AuditLine", "Filter", "Item", "Page", "State", "Why"]
