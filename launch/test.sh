#!/usr/bin/env bash
# Run the tests, from a bare clone: makes .venv, installs the test extra, checks style, types and imports, then runs
# pytest in as many processes as there are cores, up to 4.
#   bash launch/test.sh [unit] [pytest arguments]
# `unit` leaves out the tests that start processes or compile for longer than a second. For example: bash launch/test.sh -m slow
set -euo pipefail
CDPATH= cd -- "$(dirname "$0")/.."
case ${1-} in -h | --help)
    sed -n '2,5s/^# \?//p' launch/test.sh
    exit 0
    ;;
esac
. launch/install.sh
install "[test,lm-eval]"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
if [ "${1-}" = unit ]; then
    shift
    set -- -m "not slow and not device and not integration" "$@"
fi
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
