"""The one error boundary, the help of every command, and what goes to stdout and what to stderr."""

import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import airnet_cli
from airnet_cli.cli.app import app, reports_errors
from airnet_cli.errors import DataError, PresetError

runner = CliRunner()


def program(command) -> typer.Typer:
    """A program of one command, behind the boundary."""
    small = typer.Typer(pretty_exceptions_enable=False)
    small.command()(reports_errors(command))
    return small


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


def every_command(typer_app: typer.Typer = app) -> list[list[str]]:
    words = [[command.name] for command in typer_app.registered_commands]
    for group in typer_app.registered_groups:
        words += [[group.name, *rest] for rest in every_command(group.typer_instance)]
    return words


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (DataError("no.zip does not exist"), 1, "error: no.zip does not exist\n"),
        (DataError("no 'a\nb\x1b[2J\udcff'"), 1, "error: no 'a\\nb\\x1b[2J\\udcff'\n"),
        (
            PresetError("a: missing", "b: missing", "in the preset x.toml"),
            1,
            "error: a: missing\n       b: missing\n       in the preset x.toml\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["one line", "odd name", "several problems", "Ctrl-C"],
)
def test_what_can_not_be_carried_out_is_told_on_stderr(error, code, expected):
    """An AirnetError is its own text on stderr, never a traceback; stdout stays empty."""
    result = runner.invoke(program(raising(error)), [])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", expected)


def test_a_bug_keeps_its_traceback():
    """Anything else passes through the boundary as it is."""
    result = runner.invoke(program(raising(ZeroDivisionError("bug"))), [])
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_boundary_keeps_options_and_result():
    """Typer sees the options of the wrapped command, Python its result and its name."""

    def command(number: int = 3) -> int:
        """Double it."""
        return 2 * number

    wrapped = reports_errors(command)
    assert (wrapped(number=4), wrapped.__name__, wrapped.__doc__) == (8, "command", "Double it.")
    assert "--number" in runner.invoke(program(command), ["--help"]).stdout


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_each_command_has_help_with_an_example(words):
    """Help begins with a verb, and shows one command that can be typed."""
    result = runner.invoke(app, [*words, "-h"])
    assert result.exit_code == 0
    summary = result.stdout.strip().splitlines()[2].strip()
    assert summary[0].isupper()
    assert summary.endswith(".") or len(summary) > 60
    assert f"Example: airnet {' '.join(words)}" in result.stdout


def test_without_arguments_it_shows_help():
    """Someone who types `airnet` alone sees what there is."""
    result = runner.invoke(app, [])
    assert result.exit_code == 2
    assert "Commands:" in result.output
    assert "presets" in result.output


def test_version():
    """The version has one place."""
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"airnet {airnet_cli.__version__}\n")


@pytest.mark.parametrize(
    "words", [["--nope"], ["nope"], ["presets", "--nope"], ["prepare-data"]], ids=" ".join
)
def test_bad_usage_exits_with_2(words):
    """What is no command or option is bad usage, told on stderr."""
    result = runner.invoke(app, words)
    assert (result.exit_code, bool(result.stderr or words == ["prepare-data"])) == (2, True)


def shell(words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "airnet_cli", *words.split()],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_python_m_is_the_same_program():
    """`python -m airnet_cli` runs the command line, errors and exit code included."""
    done = shell("presets markt1501")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith('error: no preset has the name "markt1501"; nearest: market1501')


def test_shell_completion_knows_presets():
    """Completion offers commands, and names of presets where one belongs."""
    completing = {"_AIRNET_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", "from airnet_cli.cli.app import app; app(prog_name='airnet')"],
        capture_output=True,
        text=True,
        env=os.environ | completing | {"COMP_WORDS": "airnet presets mark", "COMP_CWORD": "2"},
    )
    assert done.stdout.split() == ["market1501", "market1501-cpu"], done.stderr


@pytest.mark.parametrize("words", [[], ["prepare-data"]], ids=["airnet", "prepare-data"])
def test_lists_of_commands_are_whole(words, monkeypatch):
    """At 80 columns no line of a list of commands is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    listed = runner.invoke(app, [*words, "--help"]).stdout.split("Commands:")[1]
    assert "..." not in listed
