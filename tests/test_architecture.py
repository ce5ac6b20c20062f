"""The layers of the project, as `[tool.importlinter]` in pyproject.toml states them, and the size of its files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from s1jax.runtime.files import ROOT

MAX_LINES, MAX_LINES_OF_A_COMMAND = 420, 80
PYTHON_SOURCES = sorted(
    path for folder in ("s1jax", "data_tools", "launch", "configs") for path in (ROOT / folder).rglob("*.py")
)
TEST_FILES = sorted((ROOT / "tests").glob("*/test_*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lint_imports(project: Path) -> subprocess.CompletedProcess:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", project / "pyproject.toml"]
    return subprocess.run(command, cwd=project, env={"PYTHONPATH": str(project)}, capture_output=True, text=True)


@pytest.mark.integration
def test_an_import_from_decode_to_train_breaks_the_contracts(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("s1jax", "data_tools", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert lint_imports(tmp_path).returncode == 0
    with (tmp_path / "s1jax" / "decode" / "loop.py").open("a") as file:
        file.write("\nfrom s1jax.train.step import TrainState\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert "s1jax.decode.loop -> s1jax.train.step" in done.stdout


def test_the_package_has_one_level_of_folders_and_no_module_outside_them():
    package = ROOT / "s1jax"
    assert [path.name for path in package.glob("*.py")] == ["__init__.py"]
    assert [path for path in package.glob("*/*/*.py") if path.parent.name != "__pycache__"] == []


def test_a_folder_s_init_is_a_short_docstring_without_imports():
    for path in (ROOT / "s1jax").glob("*/__init__.py"):
        text = path.read_text()
        assert re.fullmatch(r'"""[^"]*"""\n', text) and 1 <= text.count("\n") <= 6, path


@pytest.mark.parametrize("path", [*PYTHON_SOURCES, *sorted((ROOT / "launch").glob("*.sh"))], ids=name_of)
def test_a_source_file_is_short_and_no_grab_bag(path):
    limit = MAX_LINES_OF_A_COMMAND if path.parent.name == "launch" else MAX_LINES
    lines = path.read_text().count("\n")
    assert lines <= limit, f"{path.name} has {lines} lines: split it by idea"
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")


def test_a_test_file_is_named_after_the_file_it_tests():
    """`test_FILE.py`, or `test_FILE_ASPECT.py` if one file has several ideas to test; `test_commands.py` is about all commands."""
    strangers = []
    for path in TEST_FILES:
        folder = path.parent.name
        if folder == "launch":
            tested = [Path("commands"), *(ROOT / "launch").glob("*.*")]
        elif folder == "data_tools":
            tested = (ROOT / "data_tools").rglob("*")
        else:
            tested = (ROOT / "s1jax" / folder).glob("*.py")
        name = path.stem.removeprefix("test_")
        if not any(name == file.stem or name.startswith(file.stem + "_") for file in tested):
            strangers.append(name_of(path))
    assert not strangers


def test_no_test_file_imports_another():
    imports = re.compile(
        r"^\s*(from|import) tests\.\w+(\.\w+)*\.test_|^\s*from tests\.\w+ import .*test_|import \*", re.M
    )
    assert [name_of(path) for path in TEST_FILES if imports.search(path.read_text())] == []
