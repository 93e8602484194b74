"""The direction of imports, read from the source; and that the command line starts without torch.

cli -> workflows -> config | core; errors may be used by everybody. The command line may name types
of core for the type checker alone: they are what workflows return.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import airnet_cli

PACKAGE = Path(airnet_cli.__file__).parent

MAY_USE = {
    "errors": set(),
    "config": {"errors"},
    "core": {"errors"},
    "workflows": {"errors", "config", "core"},
    "cli": {"errors", "config", "workflows"},
    "__main__": {"cli"},
    "__init__": {"workflows"},  # only in its __getattr__: see the test of a fresh interpreter
}
"""Which parts of the package each part may import, besides itself."""

MUST_NOT_USE = {
    "errors": {"torch", "pydantic", "typer", "rich", "numpy"},
    "config": {"torch", "torchvision", "numpy", "typer", "rich"},
    "core": {"pydantic", "typer", "rich"},
    "workflows": {"typer", "rich"},
    "cli": {"torch", "torchvision", "click"},
}
"""Packages that a part has no business with. (`click`: Typer brings its own, another one.)"""

SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str, *, package: str) -> set[str]:
    """Every module that `source`, a module of `package`, imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*(above if node.level else []), *([node.module or ""])]).strip(".")
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def without_type_checking(source: str) -> str:
    """`source` without what it imports for the type checker only."""
    tree = ast.parse(source)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    return ast.unparse(tree)


def imported_on_import(source: str) -> set[str]:
    """The modules that `source` imports as soon as it is imported itself."""
    tree = ast.parse(without_type_checking(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return imported(ast.unparse(tree), package="")


def wrong_imports(source: str, *, part: str, package: str) -> set[str]:
    """The modules that `source` imports against the rules of its part of the package."""
    allowed = MAY_USE[part] | {part}
    if part == "cli":
        source = without_type_checking(source)
    wrong = set()
    for name in imported(source, package=package):
        top, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        if top == "airnet_cli" and inner in MAY_USE and inner not in allowed:
            wrong.add(name)
        if top in MUST_NOT_USE.get(part, ()):
            wrong.add(name)
    return wrong


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    """No module imports a part of the package, or a library, that its own part may not know."""
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    assert wrong_imports(path.read_text(), part=part_of(path), package=package) == set()


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if part_of(path) == "cli"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_command_imports_its_workflow_when_it_runs(path):
    """Importing a command's module imports no workflow, no preset schema and no core."""
    heavy = ("airnet_cli.workflows", "airnet_cli.config", "airnet_cli.core", "rich", "pydantic")
    assert [name for name in imported_on_import(path.read_text()) if name.startswith(heavy)] == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "from airnet_cli.config.schema import Preset"),
        ("core", "def f():\n    import rich.progress"),
        ("core", "from ..workflows import build"),
        ("core", "from airnet_cli import workflows"),
        ("config", "import torch"),
        ("workflows", "from airnet_cli.cli.output import note"),
        ("cli", "def f():\n    from airnet_cli.core.progress import silent"),
        ("core", "if TYPE_CHECKING:\n    from airnet_cli.config.schema import Preset"),
        ("cli", "from click import echo"),
    ],
)
def test_the_reader_of_imports_sees(part, source):
    """A wrong import is seen wherever and however it is written."""
    assert wrong_imports(source, part=part, package=f"airnet_cli.{part}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import rich", {"rich"}),
        ("def f():\n    import rich", set()),
        ("class A:\n    import rich", {"rich"}),
        ("if TYPE_CHECKING:\n    import rich", set()),
    ],
)
def test_imports_inside_functions_are_late(source, expected):
    """What a function imports costs nothing until it is called."""
    assert imported_on_import(source) == expected


def test_help_starts_without_torch():
    """A fresh interpreter that prints the help of every command loads no torch, NumPy or rich.

    (Pydantic is not in our hands: Typer itself uses it for a command's options, where it is there.)
    """
    program = """
import sys
from airnet_cli.cli.app import app

def show_help(group, words):
    app([*words, "--help"], standalone_mode=False)
    heavy = {"torch", "torchvision", "numpy", "PIL", "rich"} & set(sys.modules)
    assert not heavy, (words, heavy)
    for command in group.registered_commands if group else ():
        show_help(None, [*words, command.name])
    for inner in group.registered_groups if group else ():
        show_help(inner.typer_instance, [*words, inner.name])

show_help(app, [])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") > 2
