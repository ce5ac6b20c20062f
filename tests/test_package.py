"""The wheel: all packages are in it, and the installed commands run where there is no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from s1jax.runtime.config import config_names
from s1jax.runtime.files import ROOT

pytestmark = pytest.mark.integration

PACKAGES = ("s1jax", "configs", "data_tools")


def run(*command, cwd):
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network from a copy of the sources."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, source, cwd=directory)
    (wheel,) = directory.glob("s1jax-*.whl")
    return wheel


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """Python of a fresh environment inside some other git repository; the wheel is installed in it."""
    project = tmp_path_factory.mktemp("project")
    run("git", "init", "--quiet", cwd=project)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    run("git", *identity, "commit", "--quiet", "--allow-empty", "--message", "first", cwd=project)
    venv.create(project / "venv")
    python = project / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=project)
    # The dependencies come from the environment of the tests. Its `.pth` files, such as that of an editable s1jax, have no effect there.
    (packages,) = (project / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_every_module_the_report_s_page_and_the_quickstart_s_model(wheel):
    files = {path for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    files |= set((ROOT / "data_tools" / "quickstart" / "tiny_base").iterdir())
    files |= {ROOT / "data_tools" / "curation" / "msc.json"}
    files |= {
        path for suffix in ("html", "css", "js") for path in (ROOT / "s1jax" / "results").glob(f"report*.{suffix}")
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {str(path.relative_to(ROOT)) for path in files}


def test_an_installed_package_finds_its_configs_and_has_no_commit(python, tmp_path):
    code = (
        "import json\nimport s1jax\nfrom s1jax.runtime.config import config_names\nfrom s1jax.runtime.git import commit\n"
        "print(json.dumps([s1jax.__file__, config_names(), commit()]))"
    )
    location, names, commit = json.loads(run(python, "-c", code, cwd=tmp_path))
    assert Path(location).is_relative_to(python.parents[1])
    assert names == config_names()
    assert commit == "unknown"


def test_an_installed_command_runs_from_any_directory(python, tmp_path):
    run(python, "-m", "data_tools.quickstart.arithmetic", "out", "--num", 60, "--num-heldout", 12, cwd=tmp_path)
    assert [len((tmp_path / "out" / name).read_text().splitlines()) for name in ("pool.jsonl", "heldout.jsonl")] == [
        60,
        12,
    ]
    listing = run(python, "-m", "data_tools.quickstart.tiny_base", "--help", cwd=tmp_path)
    assert "usage: python -m data_tools.quickstart.tiny_base [-h]" in listing and "--num-steps INT" in listing
