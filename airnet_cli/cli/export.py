"""`airnet export`: a network for engines without torch, checked against torch at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from airnet_cli.cli.options import (
    DEFAULT_DATA_ROOT,
    DEFAULT_RUNS_ROOT,
    CheckpointOption,
    DataRootOption,
    JsonOption,
    RunsRootOption,
)
from airnet_cli.cli.output import note, print_json, print_table, progress_bars
from airnet_cli.errors import UsageError

if TYPE_CHECKING:
    from airnet_cli.workflows.export import ExportedNetwork
    from airnet_cli.workflows.runs import Model


def export(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|CHECKPOINT]",
            help="A run folder or a .safetensors checkpoint; the newest finished run if not given.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        Literal["onnx", "openvino"],
        typer.Option("--format", help="ONNX (one file), or OpenVINO's IR (.xml and .bin)."),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write it here, not beside the checkpoint, where --runtime looks for it.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="IMAGES",
            help="Check on these pictures (folder, image or list), not on the run's data set.",
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    data_root: DataRootOption = DEFAULT_DATA_ROOT,
    runs_root: RunsRootOption = DEFAULT_RUNS_ROOT,
    json: JsonOption = False,
) -> None:
    """Write a network for ONNX Runtime or OpenVINO, and check it.

    Example: airnet export --format onnx
    """
    if model is not None and checkpoint is not None:
        raise UsageError(f"'{model}' and --checkpoint '{checkpoint}' both name a model: give one")
    from airnet_cli.workflows import export as workflow

    with progress_bars() as progress:
        exported = workflow.export(
            model=checkpoint if model is None else model,
            runs_root=runs_root,
            kind=kind,
            output=output,
            images=images or (),
            data_root=data_root,
            on_model=_say_which,
            noted=lambda text: note(f"note: {text}"),
            progress=progress,
        )
    print_json(exported.to_dict()) if json else _show(exported)


def _say_which(model: "Model") -> None:
    if model.was_chosen:
        note(f"exporting the newest finished run: {model.run}")


def _show(exported: "ExportedNetwork") -> None:
    parity = exported.parity
    parts = {"whole embedding": parity.whole}
    parts |= {f"head {name}": each for name, each in parity.heads.items()}
    print_table(
        ["", "smallest cosine", "largest difference", "of values up to"],
        [
            [
                name,
                f"{each.smallest_cosine:.7f}",
                f"{each.largest_difference:.1e}",
                f"{each.largest_value:.1f}",
            ]
            for name, each in parts.items()
        ],
    )
    size = sum(file.stat().st_size for file in exported.files)
    names = " and ".join(str(file) for file in exported.files)
    note(f"wrote {names} ({size / 1e6:.1f} MB), checked with {exported.engine}")
