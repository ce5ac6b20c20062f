"""The runs of this project, one module each with a frozen `CONFIG`; the docstring of each is its record."""
