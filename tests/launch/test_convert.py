"""`convert.py`: conversions by the command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s1jax.checkpoint.source import load_tokenizer, resolve_source
from s1jax.runtime.files import ROOT
from s1jax.runtime.lock import Lock
from tests.support.checkpoints import TINY, convert, raw, tiny_tensors, write_checkpoint
from tests.support.disk import full_disk


def test_convert_ends_bad_input_with_one_message_and_leaves_nothing_behind(tmp_path, capsys, monkeypatch):
    good = write_checkpoint(tmp_path / "good", tiny_tensors())
    corrupt = write_checkpoint(tmp_path / "corrupt", tiny_tensors())
    os.truncate(corrupt / "model.safetensors", 5000)
    bad_index = write_checkpoint(tmp_path / "bad_index", tiny_tensors(), 2)
    (bad_index / "model.safetensors.index.json").write_text("{")
    bad_config = write_checkpoint(tmp_path / "bad_config", tiny_tensors(), hidden_size="wide")
    llama = write_checkpoint(tmp_path / "llama", tiny_tensors(), model_type="llama")
    pickled = write_checkpoint(tmp_path / "pickled", tiny_tensors())
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    no_config = write_checkpoint(tmp_path / "no_config", tiny_tensors())
    (no_config / "config.json").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    unfinished = tmp_path / "run"
    (unfinished / "checkpoints" / "5").mkdir(parents=True)
    no_params = tmp_path / "no_params"
    shutil.copytree(empty, no_params / "params")
    (no_params / "config.json").write_text(json.dumps(TINY))
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    for source, message in {
        tmp_path / "absent": "no directory",
        "nobody/no-such-model": f"no directory nobody/no-such-model in {Path.cwd()}, and the Hugging Face hub does not give it",
        good / "config.json": "is a file",
        corrupt: "is truncated",
        bad_index: "is not JSON",
        bad_config: "config.json",
        llama: 'model_type is "llama"',
        pickled: "pickled weights, which are not read because they may run code (pytorch_model.bin): save them as safetensors",
        no_config: "has no config.json",
        empty: "is not a checkpoint",
        unfinished: "without a finished checkpoint",
        unfinished / "checkpoints" / "5": "is not a finished checkpoint",
        no_params: "cannot read checkpoint",
    }.items():
        assert convert(source, tmp_path / "out") == 1, source
        stderr = capsys.readouterr().err
        assert stderr.startswith(("error: ", "warning: ")) and message in stderr and "Traceback" not in stderr, stderr
        assert sorted(tmp_path.iterdir()) == before
    assert convert(good, corrupt) == 1 and "exists and is not empty" in capsys.readouterr().err
    assert convert(good, good / "config.json") == 1 and "is not a directory" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(good)
    for inside in (good / "out", tmp_path / "link" / "a" / "out"):
        assert convert(good, inside) == 1 and f"{inside} lies in {good}" in capsys.readouterr().err
    (tmp_path / "link").unlink()
    assert convert(good, tmp_path / "out", "--dtype", "int8") == 1
    assert "--dtype is 'int8': it must be one of float32, bfloat16, float16" in capsys.readouterr().err
    long_name = tmp_path / ("x" * 250)
    with monkeypatch.context() as patch:
        patch.setattr("s1jax.checkpoint.source.load_model", None)
        for place in (Path("/dev/null/a/out"), Path("/proc/out"), long_name):
            assert convert(good, place) == 1
            stderr = capsys.readouterr().err
            assert stderr.startswith(f"error: {place} cannot be made in ") and ".partial" not in stderr, stderr
        patch.setattr(os.path, "ismount", lambda path: str(path) == str(empty))
        assert convert(good, empty) == 1 and "is the mount point of a file system" in capsys.readouterr().err

    assert convert(good, tmp_path / "orbax") == 0
    before = sorted(tmp_path.iterdir())
    for source in (good, tmp_path / "orbax"):
        with full_disk(2000):
            assert convert(source, tmp_path / "out") == 1
        stderr = capsys.readouterr().err.splitlines()[-1]
        assert re.match(f"error: {tmp_path / 'out'} cannot be written: .*run the same command again$", stderr), stderr
        assert sorted(tmp_path.iterdir()) == before
    with Lock(tmp_path / "out"):
        assert convert(good, tmp_path / "out") == 1 and "is being written by process" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.integration
def test_two_processes_convert_together_and_both_end_if_the_source_is_missing_in_one(tmp_path, processes):
    for process in "01":
        (tmp_path / process).mkdir()
    source = write_checkpoint(tmp_path / "0" / "source", tiny_tensors())
    script = str(ROOT / "launch" / "convert.py")
    code = f"import os, runpy, sys\nos.chdir(os.path.join({str(tmp_path)!r}, os.environ['JAX_PROCESS_ID']))\n"
    code += f"sys.argv[0] = {script!r}\nrunpy.run_path({script!r}, run_name='__main__')\n"
    first, second = processes.finish(*processes.start_two("-c", code, "source", tmp_path / "out"), timeout=60)
    assert (first.code, second.code) == (1, 1) and "error: process 1: there is no directory source in" in first.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    (tmp_path / "1" / "source").symlink_to(source)
    processes.run_two("-c", code, "source", tmp_path / "out", timeout=60)
    assert convert(tmp_path / "out", tmp_path / "back") == 0
    assert raw(tmp_path / "back") == raw(source)


@pytest.mark.slow
def test_the_real_model_goes_to_orbax_and_back_by_the_command_bit_for_bit(tmp_path, real_model):
    env = os.environ | {"PYTHONWARNINGS": ""}
    command = [sys.executable, ROOT / "launch" / "convert.py"]
    for args in ([real_model, tmp_path / "orbax", "--mesh.tensor", "2"], [tmp_path / "orbax", tmp_path / "hf"]):
        done = subprocess.run([*command, *args], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("wrote ")
    assert raw(tmp_path / "hf") == raw(real_model)
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == json.loads(
        (real_model / "config.json").read_text()
    )
    ids = [
        load_tokenizer(resolve_source(path))("Wait, 12 + 7?").input_ids
        for path in (real_model, tmp_path / "orbax", tmp_path / "hf")
    ]
    assert ids[0] == ids[1] == ids[2]
