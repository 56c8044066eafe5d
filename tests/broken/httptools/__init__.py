"""Stands in the way of the real uvicorn."""

raise RuntimeError("broken on purpose")
