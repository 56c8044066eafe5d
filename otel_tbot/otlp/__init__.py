"""Encodes events as OTLP requests and sends them to a collector."""
