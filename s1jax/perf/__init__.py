"""Speed and memory: preflight (compiling for hardware that is not present) and benchmarks (measuring this machine).

In: a config and a topology, or a workload. Out: figures, which `launch/preflight.py` and `launch/benchmark.py` print as JSON lines.
This folder may import every other folder of the package.
"""
