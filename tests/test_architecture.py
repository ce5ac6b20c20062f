"""DESIGN's layering, read from the imports of the sources: a module of the package may import only modules in rows above its own."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The rows of DESIGN's table. This project's additions: `progress`, `preemption` and `processes`; `flash_attention`, `packed_attention` and
# `cached_attention` (parts of `attention`); `bits`, `quantization`, `cache`, `rope`, `parameter` and `model_config` (parts of `model`);
# `flops`; `lora`; the four parts of `checkpoint`; `packing`, `loss`, `optimizer`, `train_step`, `train_log` and `train_config` (parts of
# `train`); `request`, `rows` and `scheduler` (parts of `decode`); `generate` (one question to one model); `samples` (part of `metrics`)
# and `tables` (part of `plot`); `measure` and its parts.
TABLE = """
bits progress processes preemption config sharding chat grading rope model_config quantization
flash_attention packed_attention cached_attention attention embedding cache flops
parameter model lora
safetensors_io hf_weights orbax_params state_store checkpoint
data packing loss optimizer train_step train_log train_config train
sampling budget request decode rows scheduler generate benchmarks samples metrics evaluate sweep
measure measure_train measure_convert tables plot preflight
"""
ROWS = TABLE.split()
# DESIGN's four, of which `decode` is used through `request` and `scheduler`; `config` and `progress` for the command line, and `data`
# for the format of training rows.
DATA_TOOLS_MAY_IMPORT = {"chat", "grading", "request", "scheduler", "benchmarks", "config", "data", "progress"}
# The script that makes a base model trains one.
BASE_MODEL_MAY_IMPORT = DATA_TOOLS_MAY_IMPORT | {"model", "model_config", "sharding", "checkpoint", "train_step"}
MAX_LINES, MAX_LINES_OF_A_COMMAND = 420, 80  # "about 400"; "under ~80"
NEEDED_ON_BARE_MACHINES = {"jax", "flax", "optax", "numpy"}
BROUGHT_ALONG = {"ml_dtypes", "orbax_checkpoint"}  # by JAX and Flax
BARE_MODULES = [
    "attention",
    "flash_attention",
    "packed_attention",
    "cached_attention",
    "rope",
    "model",
    "sharding",
    "packing",
    "train_step",
    "sampling",
    "budget",
    "decode",
    "scheduler",
    "measure",
    "measure_train",
    "measure_convert",
]

PACKAGE = sorted(path for path in (ROOT / "s1jax").glob("*.py") if path.stem != "__init__")
SOURCES = sorted(
    path for folder in ("s1jax", "data_tools", "launch", "configs") for path in (ROOT / folder).rglob("*.py")
)


def imports(tree: ast.Module) -> set[str]:
    """Dotted names imported anywhere in a tree: `from a import b` gives both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def in_package(names: set[str]) -> set[str]:
    """Modules of the package among dotted names."""
    return {name.split(".")[1] for name in names if name.startswith("s1jax.")}


def imports_of(path: Path) -> set[str]:
    return imports(ast.parse(path.read_text()))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_sources_are_found():
    assert {"model.py", "budget.py"} <= {path.name for path in PACKAGE}


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_a_module_imports_only_modules_above_it(path):
    assert path.stem in ROWS, f"{path.name} is not in DESIGN's table"
    used, may = in_package(imports_of(path)), set(ROWS[: ROWS.index(path.stem)])
    if path.stem in ("decode", "rows", "scheduler"):
        may -= {"packing", "loss", "optimizer", "train_step", "train_log", "train_config", "train"}  # siblings
    assert used <= may, f"{path.stem} may not import {sorted(used - may)}"
    outside = {name.split(".")[0] for name in imports_of(path)} & {"data_tools", "launch", "configs", "tests"}
    assert not outside, f"the package never imports {outside}"


def test_the_readme_names_every_module():
    readme = (ROOT / "README.md").read_text()
    assert [path.name for path in PACKAGE if path.name not in readme] == []


@pytest.mark.parametrize("path", sorted((ROOT / "data_tools").rglob("*.py")), ids=name_of)
def test_data_tools_import_only_what_they_may(path):
    used = in_package(imports_of(path))
    may = BASE_MODEL_MAY_IMPORT if "base" in path.stem else DATA_TOOLS_MAY_IMPORT
    assert used <= may, f"{path.stem} may not import {sorted(used - may)}"


def top_level(path: Path) -> ast.Module:
    """The statements that run when a file is imported: not those under TYPE_CHECKING or inside functions."""
    statements = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.Module(statements, [])


def reached_from(module: str) -> tuple[set[str], set[str]]:
    """Modules of the package that importing this one imports, and first words of everything else they import."""
    reached: set[str] = set()
    outside: set[str] = set()
    left = {module}
    while left:
        reached |= left
        names = {name for stem in left for name in imports(top_level(ROOT / "s1jax" / f"{stem}.py"))}
        outside |= {name.split(".")[0] for name in names} - {"s1jax"}
        left = in_package(names) - reached
    return reached, outside


def test_plots_know_no_model():
    assert not reached_from("plot")[0] & {"attention", "model", "checkpoint", "train", "decode", "evaluate", "sweep"}


@pytest.mark.parametrize("module", BARE_MODULES)
def test_what_runs_on_bare_machines_names_only_jax_flax_optax_and_numpy(module):
    assert reached_from(module)[1] - set(sys.stdlib_module_names) <= NEEDED_ON_BARE_MACHINES | BROUGHT_ALONG


def test_what_runs_on_bare_machines_can_be_imported_where_nothing_else_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in declared}
    assert {"transformers", "grain", "jaxtyping", "tyro"} <= names
    missing = names - NEEDED_ON_BARE_MACHINES - BROUGHT_ALONG
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(missing)})); "
    code += "; ".join(f"import s1jax.{module}" for module in BARE_MODULES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "launch").glob("*.sh"))], ids=name_of)
def test_a_source_file_is_short_and_no_grab_bag(path):
    limit = MAX_LINES_OF_A_COMMAND if path.parent.name == "launch" else MAX_LINES
    lines = path.read_text().count("\n")
    assert lines <= limit, f"{path.name} has {lines} lines: split it by idea"
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
