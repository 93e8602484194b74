"""The direction of imports and the size of the code, read from the source; and that the command
line starts without torch.

cli -> workflows -> config | core; errors may be used by everybody. The command line may name types
of core for the type checker alone: they are what workflows return.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import airnet_cli

PACKAGE = Path(airnet_cli.__file__).parent
TESTS = Path(__file__).parent

# Limits of size. Each landing that makes the code smaller lowers them to what it reached.
# The goal: 14,000 lines in 85 files, 400 lines a file, 60 a function body, 15,000 lines of tests,
# and no import cycle.
MAX_PACKAGE_LINES = 20_063
MAX_PACKAGE_FILES = 115
MAX_FILE_LINES = 453
MAX_BODY_LINES = 60  # of a function, without its signature and docstring
MAX_TEST_LINES = 19_669
KNOWN_CYCLES = {  # imports that close a circle: these read the version, which imports the Embedder
    ("airnet_cli.config.presets", "airnet_cli"),
    ("airnet_cli.core.checkpoint", "airnet_cli"),
}

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
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
}
"""The package's modules by name."""


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


def lines_of(paths: list[Path]) -> dict[Path, int]:
    """How many lines each file has, as `wc -l` counts them."""
    return {path: path.read_text(encoding="utf-8").count("\n") for path in paths}


def body_lines(source: str) -> dict[str, int]:
    """How many lines the body of each function has, without its signature and docstring.

    A function of the same name twice, as methods of two classes, counts with its longest body.
    """
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            found[node.name] = max(found.get(node.name, 0), lines)
    return found


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which modules each of `sources` (name to source) imports, in functions too."""
    graph = {}
    for name, source in sources.items():
        is_package = any(other.startswith(f"{name}.") for other in sources)
        package = name if is_package else name.rpartition(".")[0]
        names = imported(without_type_checking(source), package=package)
        graph[name] = (names & sources.keys()) - {name}
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first again at the end; empty if none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


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


def test_the_package_stays_small():
    """Lines, files and the longest file of the package are within their limits."""
    lines = lines_of(SOURCES)
    longest = max(lines, key=lines.__getitem__)
    assert sum(lines.values()) <= MAX_PACKAGE_LINES
    assert len(lines) <= MAX_PACKAGE_FILES
    assert lines[longest] <= MAX_FILE_LINES, longest


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_stay_short(path):
    """No function has a body longer than the limit."""
    too_long = {
        name: lines
        for name, lines in body_lines(path.read_text()).items()
        if lines > MAX_BODY_LINES
    }
    assert too_long == {}


def test_the_tests_stay_small():
    """All files of tests together are within their limit."""
    assert sum(lines_of(sorted(TESTS.rglob("*.py"))).values()) <= MAX_TEST_LINES


def test_no_modules_import_each_other():
    """No module imports itself by way of others, not even inside a function."""
    sources = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    graph = import_graph(sources)
    for module, other in KNOWN_CYCLES & {(m, o) for m, others in graph.items() for o in others}:
        graph[module].discard(other)
    assert cycle_in(graph) == []


def test_the_ratchet_sees():
    """Bodies are counted without signature and docstring; cycles through functions are found."""
    source = 'def f(\n    a,\n):\n    """Text.\n\n    More.\n    """\n    a = 1\n\n    return a\n'
    assert body_lines(source) == {"f": 3}
    late = {"p.a": "from p import b", "p.b": "def f():\n    import p.a"}
    typed = {"p.a": "from . import b", "p.b": "if TYPE_CHECKING:\n    import p.a"}
    assert set(cycle_in(import_graph(late))) == {"p.a", "p.b"}
    assert import_graph(typed) == {"p.a": {"p.b"}, "p.b": set()}


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
