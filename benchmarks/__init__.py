"""What every figure of speed or memory comes from."""
