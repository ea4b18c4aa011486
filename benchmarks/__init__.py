"""Claims about speed, measured: `python -m benchmarks` runs all of them."""
