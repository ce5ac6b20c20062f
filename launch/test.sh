#!/usr/bin/env bash
# Run the tests, from a bare clone: makes .venv, installs the test extra, checks style and types, runs pytest
# in as many processes as there are cores, up to 4.
#   bash launch/test.sh [pytest arguments]      e.g.  bash launch/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/install.sh
install "[test]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
