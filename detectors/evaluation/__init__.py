"""The offline room: attacks, corruptions, and what they show of a screener. Nothing that is served imports it."""
