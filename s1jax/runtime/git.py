"""The git commit that a result was made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from s1jax.runtime.files import ROOT


def commit() -> str:
    """Return the git commit of this checkout, followed by `+` if files differ from it.

    An installed package has no commit and returns "unknown", even if it lies inside some other repository.
    """
    git = ["git", "-C", str(ROOT)]
    result = subprocess.run(
        [*git, "rev-parse", "--show-toplevel", "--short=12", "HEAD"], capture_output=True, text=True
    )
    if result.returncode:
        return "unknown"
    top, revision = result.stdout.splitlines()
    if Path(top).resolve() != ROOT:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    return revision + "+" * (changed != 0)
