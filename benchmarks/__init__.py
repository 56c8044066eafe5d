"""Measures every figure of speed and memory: `python -m benchmarks`, or `make bench`.

Each module measures some of the figures. `processes` runs programs and reads their time and memory, `competitors`
provides the programs that ours is compared with, `table` prints and writes the tables, `charts` draws the ratios.
"""
