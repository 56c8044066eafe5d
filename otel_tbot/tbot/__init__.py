"""Reads and speaks what tbot reads and speaks: its configuration, its flags and its reporting protocol."""
