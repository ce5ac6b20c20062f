"""The git commit that a result was made with."""

from __future__ import annotations

import subprocess

from s1jax.runtime.files import ROOT


def commit() -> str:
    """Return the git commit of this checkout, with a `+` where files differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    result = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if result.returncode:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
    return result.stdout.strip() + ("+" if changed else "")
