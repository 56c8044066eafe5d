"""The tests against the real OpenTelemetry Collector."""
