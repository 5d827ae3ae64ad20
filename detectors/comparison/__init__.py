"""Losses side by side, on the same networks and data: what they are worth, measured. Offline only."""
