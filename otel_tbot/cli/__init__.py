"""Implements the commands of `otel-tbot`, except `run`, which the launcher executes without them."""
