"""`command.py`: exit codes, and messages on standard error that name their process."""

import json
import logging
import os
import subprocess
import sys

import jax
import pytest

from s1jax.runtime.command import configure_logging, counted, listed, run_command
from s1jax.runtime.errors import UserError
from s1jax.runtime.files import ROOT


@pytest.mark.parametrize(("number", "text"), [(0, "0 stops"), (1, "1 stop"), (2, "2 stops")])
def test_one_is_no_plural(number, text):
    assert counted(number, "stop") == text


def test_a_message_cannot_command_a_terminal(capsys):
    def main():
        raise UserError(f"no file \x1b]0;owned\x07\u202e {'9' * 400}")

    with pytest.raises(SystemExit):
        run_command(main)
    assert capsys.readouterr().err == "error: no file \\x1b]0;owned\\x07\\u202e " + "9" * 60 + "..." + "9" * 17 + "\n"


def test_long_lists_of_problems_are_cut():
    assert listed(["a", "b"]) == "\n  a\n  b"
    assert listed([str(i) for i in range(10)]).splitlines()[-2:] == ["  7", "  and 2 more"]


@pytest.mark.integration
def test_a_reader_that_goes_away_is_no_error(tmp_path):
    command = f"{sys.executable} {ROOT}/launch/convert.py --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">&-", 0, "warning: standard output is closed: what this command prints there is lost\n"),
        (">/dev/full", 1, "error: standard output cannot be written: No space left on device\n"),
    ],
)
def test_results_that_cannot_be_printed_are_not_lost_without_a_word(redirection, code, message):
    run = "from s1jax.runtime.command import run_command; run_command(lambda: print(1))"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{run}' {redirection}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.integration
@pytest.mark.parametrize("command", ["generate.py --help", "train.py --help", "plot.py none.jsonl", "convert.py a b"])
def test_a_variable_that_a_library_refuses_is_one_line(command):
    env = os.environ | {"JAX_LOG_COMPILES": "maybe", "MATPLOTLIBRC": "/nonesuch", "MPLBACKEND": "agg"}
    run = subprocess.run([sys.executable, *f"{ROOT}/launch/{command}".split()], env=env, capture_output=True, text=True)
    if command.startswith("plot"):  # it needs no JAX
        assert run.stderr == "error: none.jsonl cannot be read: No such file or directory\n"
    else:
        assert run.returncode == 1 and run.stderr.startswith("error: jax cannot be imported (ValueError: ")
        assert run.stderr.count("\n") == 1 and "'maybe' for environment 'JAX_LOG_COMPILES'" in run.stderr


@pytest.mark.parametrize(
    ("name", "default", "other"),
    [
        ("JAX_DEFAULT_PRNG_IMPL", "threefry2x32", "rbg"),
        ("JAX_THREEFRY_PARTITIONABLE", "True", "0"),
        ("JAX_ENABLE_X64", "false", "1"),
    ],
)
def test_a_variable_that_would_change_the_draws_is_refused(name, default, other, monkeypatch, capsys):
    monkeypatch.setenv(name, default)
    run_command(lambda: None)
    monkeypatch.setenv(name, other)
    with pytest.raises(SystemExit):
        run_command(lambda: None)
    assert capsys.readouterr().err == f"error: {name} would change the results, and no row would tell: unset it\n"


def test_bad_input_is_one_line_and_a_nonzero_exit(capsys):
    def main():
        raise UserError("the shop is closed: come tomorrow")

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    assert exit_info.value.code == 1
    assert capsys.readouterr().err == "error: the shop is closed: come tomorrow\n"


def test_a_deleted_working_directory_is_named(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit):
        run_command(lambda: None)
    assert capsys.readouterr().err == "error: the working directory was deleted: change to another one\n"


def test_an_error_that_is_not_about_input_keeps_its_traceback():
    with pytest.raises(json.JSONDecodeError):
        run_command(lambda: json.loads("{"))


def test_a_device_that_ran_out_of_memory_is_one_line_that_says_what_to_lower(capsys):
    JaxRuntimeError = type("JaxRuntimeError", (RuntimeError,), {})

    def main():
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4198464172336 bytes.\nLargest buffers: ...")

    with pytest.raises(SystemExit) as exit_info:
        run_command(main)
    error = capsys.readouterr().err
    assert exit_info.value.code == 1 and error.count("\n") == 1
    assert error.startswith(
        "error: out of memory on a device: Out of memory allocating 4198464172336 bytes. In training use"
    )

    def other():
        raise JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(JaxRuntimeError):
        run_command(other)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ("cuda", "JAX has no devices of JAX_PLATFORMS=cuda: install the extra [cuda12] or [cuda13] of s1jax"),
        ("tpu", "JAX has no devices of JAX_PLATFORMS=tpu: install the extra [tpu] of s1jax"),
        ("gpux", "JAX has no devices of JAX_PLATFORMS=gpux: choose cpu, cuda or tpu"),
    ],
)
def test_a_platform_without_devices_is_one_line_that_names_the_package(platform, message):
    code = "import jax\nfrom s1jax.runtime.command import run_command\nrun_command(jax.devices)"
    env = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("this machine has such devices")
    assert done.returncode == 1 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.integration
@pytest.mark.parametrize("first", ["", "import jax\n"], ids=["jax_later", "jax_first"])
def test_compiled_programs_are_kept_for_the_next_command_unless_this_is_turned_off(first, tmp_path):
    code = first + (
        "from s1jax.runtime.command import run_command\n"
        "def main():\n    import jax\n    jax.jit(lambda x: x + 1)(1.0)\n"
        "run_command(main)"
    )
    unset = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    quick = unset | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    for extra, kept in (({"JAX_COMPILATION_CACHE_DIR": ""}, False), ({}, True)):
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=quick | extra)
        assert any((tmp_path / "s1jax").rglob("*jit*")) == kept


@pytest.fixture
def logger():
    """A logger of the project, whose messages are shown."""
    configure_logging()
    return logging.getLogger("s1jax.runtime.some_module")


def test_a_message_is_shown_once_and_only_a_warning_has_a_prefix(logger, capsys, monkeypatch):
    """The root logger may have a handler too: importing Orbax gives it one."""
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])
    configure_logging()
    logger.info("resuming from step %d", 3)
    logger.warning("no tokenizer")
    logging.getLogger("data_tools.curation").info("60 rows left")
    assert capsys.readouterr().err == "resuming from step 3\nwarning: no tokenizer\n60 rows left\n"


@pytest.mark.parametrize(
    ("process", "shown"),
    [(0, "[process 0] step 1\n[process 0] warning: slow\n"), (1, "[process 1] warning: slow\n")],
)
def test_one_of_several_processes_names_itself_and_only_the_first_says_more_than_warnings(
    process, shown, logger, capsys, monkeypatch
):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    logger.info("step 1")
    logger.warning("slow")
    assert capsys.readouterr().err == shown


def test_an_unexpected_error_in_one_of_several_processes_is_a_traceback_with_its_process(capsys, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as exit_info:
        run_command(lambda: json.loads("{"))
    error = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert error.startswith("[process 1] error: JSONDecodeError\nTraceback ") and error.count("Traceback") == 1
