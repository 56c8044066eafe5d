"""Generates what the repository keeps in step with the code: pages, guard, registry and protocol code."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
