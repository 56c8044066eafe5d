"""The tests of otel-tbot."""
