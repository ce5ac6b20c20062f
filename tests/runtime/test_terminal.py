"""`terminal.py`: nothing that others wrote can command a terminal, and nothing stops the output."""

import io
import subprocess
import sys

import pytest

from s1jax.runtime.files import ROOT
from s1jax.runtime.terminal import for_stream, shortened, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc é 漢 👩\u200d👧", "a\tb\nc é 漢 👩\u200d👧"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J\x7f\x08\r\x00", r"\x9b2J\x7f\x08\r\x00"),
        ("user\u202etxt.exe\u2066", r"user\u202etxt.exe\u2066"),
        ("half \ud83d", r"half \ud83d"),
    ],
)
def test_control_characters_are_shown_not_obeyed(text, shown):
    assert visible(text) == shown


def test_a_pipe_gets_the_text_itself():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    assert for_stream(io.StringIO(), "\x1b[2J") == "\x1b[2J" and for_stream(terminal, "\x1b[2J") == r"\x1b[2J"


def test_a_long_value_is_cut():
    assert shortened(7) == "7" and shortened("a") == "'a'"
    for value in ("x" * 500, 10**400, ("16",) * 100):
        assert len(shortened(value)) == 80 and "..." in shortened(value)
    assert shortened(10**5000) == "int with too many digits" and shortened((10**5000,)) == "tuple with too many digits"


@pytest.mark.integration
@pytest.mark.parametrize("redirect", ["", ">&-", "2>&- <&-"])
def test_a_command_prints_any_text_under_any_locale_and_with_closed_streams(redirect, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import logging\nfrom pathlib import Path\nfrom s1jax.runtime.command import run_command\n"
        "def main():\n    Path('out').write_text('kept')\n    file = open('out')\n    print('\\ud83d é')\n"
        "    logging.getLogger('s1jax').info('\\x1b[2J \\ud83d é')\n    assert file.read() == 'kept' and file.fileno() > 2\n"
        "run_command(main)\n"
    )
    env = {"PYTHONPATH": str(ROOT), "LANG": "C", "PYTHONIOENCODING": "ascii"}
    command = ["bash", "-c", f'exec "{sys.executable}" script.py {redirect}']
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done
    if not redirect:
        assert (done.stdout, done.stderr) == ("\\ud83d \\xe9\n", "\\x1b[2J \\ud83d \\xe9\n")
    assert (tmp_path / "out").read_text() == "kept"
