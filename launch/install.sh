# Sourced by quickstart.sh and test.sh. `install EXTRAS` ("" or "[test]") makes .venv in the project's root, again after each change of the requirements.
install() {
    local extras=$1 python=python3 version stamp clear=
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
    python=${PYTHON:-$python}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: s1jax needs Python 3.11 or newer; found: $("$python" --version 2>&1). Set PYTHON to one, as in: PYTHON=python3.12 bash $0" >&2
        return 1
    fi
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    stamp=".venv/installed${extras}-$version-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)"
    if [ ! -e "$stamp" ]; then
        # A new version of Python does not see the packages that an older one installed.
        if [ -d .venv/lib ] && [ ! -d ".venv/lib/python$version" ]; then clear=--clear; fi
        echo "== installing into .venv (once)${clear:+, again for Python $version}" >&2
        if ! { "$python" -m venv $clear .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extras"; }; then
            echo "error: the installation failed, see above. Check the network and the disk, then run this again" >&2
            return 1
        fi
        touch "$stamp"
    fi
}
