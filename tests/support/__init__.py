"""Helps tests: real servers, processes as a user starts them, and the programs that `make` built."""
