"""Judging more images than one machine holds: blocks of them, spread by Ray Data, each written once."""
