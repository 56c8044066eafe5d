"""Receives the one report of the tbot behind `otel-tbot run` and sends its event."""
