"""`airnet presets`: what can be trained, and from which values."""

from typing import Annotated

import typer

from airnet_cli.cli.options import JsonOption, complete_preset
from airnet_cli.cli.output import print_json, print_table, print_text

JSON_VERSION = 1
"""Of the shape that `--json` prints: version, and presets (name to description)."""


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            autocompletion=complete_preset,
            help="Print this preset's TOML as it is, to read or to start your own from.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the presets with a line each, or print one.

    Example: airnet presets market1501 > mine.toml
    """
    from airnet_cli.config.presets import list_presets, preset_text

    if name is not None:
        print_text(preset_text(name))
    elif json:
        print_json({"version": JSON_VERSION, "presets": list_presets()})
    else:
        print_table(["preset", "what it is"], list(list_presets().items()))
