"""What every figure of speed or memory comes from: `python -m benchmarks`, or `make bench`.

Each module measures some of the figures; `measuring` runs processes and reads what they cost, `peers` provides what is
measured beside ours, `table` prints and writes.
"""
