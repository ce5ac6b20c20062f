"""How fast and how large: preflight compilation without the hardware, and benchmarks on this machine.

In: a config, a topology or a workload. Out: figures as JSON lines.
This folder may import every other folder of the package.
"""
