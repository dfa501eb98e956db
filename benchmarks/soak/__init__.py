"""Search long, kill saves at every step, damage saved files in every way: `python -m benchmarks.soak`."""
