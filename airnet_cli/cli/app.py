"""The `airnet` command: registers the commands and holds the one error boundary.

Command files are plain functions; `reports_errors` around each of them turns an `AirnetError` into
a line on stderr and exit code 1, and a signal into 130 or 143 (`stopping.py`). Anything else is a
bug and keeps its traceback. Nothing here, nor in what it imports, loads torch: `airnet --help` and
shell completion stay quick.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from airnet_cli import __version__
from airnet_cli.cli import gallery, prepare_data
from airnet_cli.cli.compare import compare
from airnet_cli.cli.embed import embed
from airnet_cli.cli.evaluate import evaluate
from airnet_cli.cli.export import export
from airnet_cli.cli.match import match
from airnet_cli.cli.output import note
from airnet_cli.cli.presets import presets
from airnet_cli.cli.stopping import exit_code, stopping_on_signals, word
from airnet_cli.cli.train import train
from airnet_cli.cli.visualize import visualize
from airnet_cli.errors import AirnetError, UsageError, quoted

P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    """Run the command line: the entry point of `airnet` and of `python -m airnet_cli`."""
    app()


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print an `AirnetError` of `command` to stderr and exit with 1; 130 or 143 when stopped."""

    @functools.wraps(command)  # Typer reads the options of the wrapped function
    def reporting(*args: P.args, **kwargs: P.kwargs) -> R:
        from airnet_cli.workflows.memory import keep_freed_memory

        try:
            _check_names([*args, *kwargs.values()])
            keep_freed_memory()
            with stopping_on_signals():
                return command(*args, **kwargs)
        except AirnetError as error:
            first, *further = str(error).split("\n")
            note(f"error: {first}")
            for line in further:
                note(f"       {line}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stop:
            note(word(stop))
            raise typer.Exit(exit_code(stop)) from None

    return reporting


def _check_names(given: Iterable[object]) -> None:
    """Refuse paths that the system can't even look for, such as names that are too long.

    Raises:
        UsageError: for the first one.
    """
    for value in given:
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                try:
                    path.lstat()
                except (FileNotFoundError, NotADirectoryError):
                    pass  # what is to be done about it, the command knows
                except OSError as error:
                    raise UsageError(
                        f"{quoted(path)} can't be looked for: {error.strerror}; give another path"
                    ) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"airnet {__version__}")
        raise typer.Exit


def _group(help_text: str) -> typer.Typer:
    """An empty group of commands: the program itself, or one with kinds such as `prepare-data`."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        rich_markup_mode=None,  # panels cost --help and completion half of their time
        pretty_exceptions_enable=False,  # a bug shows the traceback that Python gives
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group("Person re-identification with AIR-Net: train, evaluate, embed, match and explain.")


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None: ...


for kind in (prepare_data, gallery):
    commands = _group(kind.HELP)
    for name, command in kind.COMMANDS.items():
        commands.command(name)(reports_errors(command))
    app.add_typer(commands, name=kind.NAME)

_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "embed": embed,
    "match": match,
    "visualize": visualize,
    "export": export,
    "presets": presets,
}
for name, command in _COMMANDS.items():
    app.command(name)(reports_errors(command))
