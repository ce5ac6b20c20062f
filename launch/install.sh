# Sourced by quickstart.sh and test.sh: makes .venv in the project's root, with the extras given ("" or "[test]"), once per change of its requirements.
install() {
    local extras=$1 python=${PYTHON:-python3} stamp
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: s1jax needs Python 3.11 or newer; found: $("$python" --version 2>&1). Set PYTHON to one, as in: PYTHON=python3.12 bash $0" >&2
        return 1
    fi
    stamp=".venv/installed${extras}-$(cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)"
    if [ ! -e "$stamp" ]; then
        echo "== installing into .venv (once)" >&2
        if ! { "$python" -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extras"; }; then
            echo "error: the installation failed, see above. Check the network and the disk, then run this again; it goes on where it stopped" >&2
            return 1
        fi
        touch "$stamp"
    fi
}
