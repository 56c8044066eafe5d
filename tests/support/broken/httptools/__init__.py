"""Stands in the way of the real httptools."""

raise RuntimeError("broken on purpose")
