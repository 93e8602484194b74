"""The wheel: built, installed into an empty folder, and used from another empty folder.

It is installed without its dependencies, which are those of this environment: no downloads.
"""

import ast
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

import airnet_cli
from airnet_cli.config.presets import preset_names, preset_text

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=PROJECT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-index", "--no-deps", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def run(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def airnet(installed: Path, cwd: Path, *words: str) -> str:
    """What the installed `airnet` prints, run in `cwd`."""
    return run(str(installed / "bin" / "airnet"), *words, cwd=cwd, PYTHONPATH=str(installed))


@pytest.mark.slow
def test_what_is_in_the_wheel(wheel):
    """The package with its presets, types marker and licence; no tests, nothing beside it."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "airnet_cli",
        f"airnet-{airnet_cli.__version__}.dist-info",
    }
    presets = {name for name in names if name.endswith(".toml")}
    assert presets == {f"airnet_cli/presets/{name}.toml" for name in preset_names()}
    assert {"airnet_cli/py.typed", "airnet_cli/core/report.html"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.slow
def test_the_installed_wheel_finds_its_own_presets(installed, tmp_path):
    """From an empty folder: help, and a preset that comes out of the wheel, not of the checkout."""
    assert "Commands:" in airnet(installed, tmp_path, "--help")
    assert airnet(installed, tmp_path, "presets", "market1501") == preset_text("market1501")
    program = "from airnet_cli.config.presets import find_preset; print(find_preset('market1501'))"
    found = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(found.strip()) == installed / "airnet_cli" / "presets" / "market1501.toml"


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("airnet_cli.cli.train") is None, reason="airnet train is not there yet"
)
def test_the_installed_wheel_resolves_a_preset(installed, tmp_path):
    """`train --dry-run` needs neither data nor weights, and leaves nothing behind."""
    words = ("train", "--preset", "market1501", "--dry-run", "--json")
    shown = json.loads(airnet(installed, tmp_path, *words))
    assert shown["preset"]["data"]["name"] == "market1501"
    assert shown["embedding_size"] == 6144
    assert list(tmp_path.iterdir()) == []


def test_what_is_imported_is_required():
    """The dependencies are complete: no module relies on what another package happens to bring."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    extras = project["optional-dependencies"]
    needs = [need for extra in extras if extra != "dev" for need in extras[extra]]
    optional = {need.split(">=")[0].partition("[")[0] for need in needs}  # "ray[data]>=..."
    imported = set()
    for path in (PROJECT / "airnet_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    imported -= sys.stdlib_module_names | {"airnet_cli"}
    assert {{"PIL": "pillow"}.get(name, name) for name in imported} - optional == required


def test_each_dependency_has_its_row():
    """`docs/architecture.md` names the lowest version that pyproject.toml has, of all of them."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    every = [project["dependencies"], *project["optional-dependencies"].values()]
    bounds = {need.partition(">=")[::2] for needs in every for need in needs if ">=" in need}
    missing = [
        f"{name} {bound}"
        for name, bound in sorted(bounds)
        if f"| {name} | {bound} |" not in page and f"{name} {bound}" not in page
    ]
    assert missing == []


def test_the_version_has_one_place():
    """What is installed has the version of the source."""
    assert metadata.version("airnet") == airnet_cli.__version__
