"""What every command needs, and nothing about models.

In: command lines, configs, files, processes, devices. Out: typed configs, messages, exit codes, meshes and shardings.
May import nothing else of this project.
"""
