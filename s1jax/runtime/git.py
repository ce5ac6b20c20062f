"""The git commit that a result was made with."""

from __future__ import annotations

import subprocess

from s1jax.runtime.files import ROOT


def commit() -> str:
    """Return the git commit of this checkout, followed by `+` if files differ from it.

    An installed package has no commit and returns "unknown", even if it lies inside some other repository.
    """
    if not (ROOT / ".git").exists():
        return "unknown"
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    return subprocess.run(describe, capture_output=True, text=True).stdout.strip() or "unknown"
