"""Options that several commands share, declared once. Defaults stand here, beside them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_DATA_ROOT = Path("data")
DEFAULT_RUNS_ROOT = Path("runs")


def complete_preset(incomplete: str) -> list[str]:
    """The names of presets that begin like `incomplete`, for shell completion."""
    from airnet_cli.config.presets import preset_names

    return [name for name in preset_names() if name.startswith(incomplete)]


def place(text: str) -> Path | str:
    """A path; or, where it is one, a URL as it stands.

    >>> place("s3://bucket/crops"), place("crops").name
    ('s3://bucket/crops', 'crops')
    """
    return text if "://" in text else Path(text)


DataRootOption = Annotated[
    Path,
    typer.Option(
        "--data-root",
        envvar="AIRNET_DATA",
        file_okay=False,
        help="Look up prepared data sets in this folder.",
    ),
]
RunsRootOption = Annotated[
    Path,
    typer.Option(
        "--runs-root",
        envvar="AIRNET_RUNS",
        file_okay=False,
        help="Keep training runs in this folder.",
    ),
]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
DeviceOption = Annotated[
    DeviceName,
    typer.Option("--device", help="Compute on this device; auto: the best one that is there."),
]
PrecisionName = Literal["fp32", "bf16", "fp16"]
RuntimeName = Literal["torch", "onnx", "openvino"]
RuntimeOption = Annotated[
    RuntimeName,
    typer.Option(
        "--runtime", help="Compute with torch, or with an engine what `airnet export` wrote."
    ),
]
ExportedOption = Annotated[
    Path | None,
    typer.Option(
        "--exported",
        metavar="FILE",
        help="With --runtime onnx or openvino: the exported file, if not beside the checkpoint.",
    ),
]
PrecisionOption = Annotated[
    PrecisionName | None,
    typer.Option("--precision", help="Compute in this precision instead of the preset's."),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=2**32 - 1, help="Draw random numbers from this seed, not the preset's."
    ),
]
PresetOption = Annotated[
    str,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME|FILE",
        autocompletion=complete_preset,
        help="Take all settings from this preset: a name (airnet presets) or a .toml file.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the preset, as in model.variant=baseline; may be repeated.",
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="RUN|FILE",
        help="Use this run folder or model.safetensors instead of the newest finished run.",
    ),
]
AllowPartialOption = Annotated[
    bool,
    typer.Option(
        "--allow-partial", help="Search a gallery although parts of it are not computed yet."
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON for programs instead of a table for people."),
]
