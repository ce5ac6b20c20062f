"""A table of text: aligned for a terminal, or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from s1jax.runtime.terminal import visible


@dataclass(frozen=True)
class Table:
    """A title, a header, rows of cells, and notes below them. Numbers stand on the right, the first column on the left."""

    title: str
    header: tuple[str, ...]
    cells: Sequence[tuple[str, ...]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return the table as aligned plain text, with a rule below the header."""
        table = [self.header, *self.cells]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        pad = [str.ljust] + [str.rjust] * (len(widths) - 1)
        lines = ["  ".join(p(cell, w) for p, cell, w in zip(pad, row, widths, strict=True)) for row in table]
        return "\n".join([self.title, lines[0], "-" * len(lines[0]), *lines[1:], *self.notes])

    def markdown(self) -> str:
        """Return the table as Markdown: a heading, the table, and each note as a paragraph."""
        rule = ":--" + "|--:" * (len(self.header) - 1)
        rows = ["|".join(map(escaped, row)) for row in (self.header, *self.cells)]
        lines = [f"## {escaped(self.title)}", "", *(f"|{row}|" for row in (rows[0], rule, *rows[1:]))]
        return "\n".join([*lines, *(line for note in self.notes for line in ("", escaped(note)))])


def escaped(text: str) -> str:
    """Return a text on one line that Markdown shows as it is: no markup, no HTML, no break of a cell."""
    return re.sub(r"([\\`*<>&|~$\[\]])", r"\\\1", " ".join(visible(text).split()))
