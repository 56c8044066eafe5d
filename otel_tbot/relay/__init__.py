"""Runs the relay of `otel-tbot run`: the process that takes the one report of one tbot."""
