"""Runs the commands of `otel-tbot` but `run`, whose start path bypasses them."""
