"""What every command stands on.

In: command lines, configs, files, processes, devices. Out: typed configs, messages, exit codes, meshes and shardings.
It knows no model. It imports nothing else of this project.
"""
