"""The exported network: a file that ONNX Runtime or OpenVINO runs without torch.

    images      (B, H, W, 3) uint8 RGB, resized as in training (as PIL and NumPy have pictures)
    embeddings  (B, D) float32, all heads after their batch norm, concatenated

Pixels are normalised inside the graph, as in the network; B is free. What the file is of (heads,
size, fingerprint) stands in its metadata: ONNX's own, or `airnet` in OpenVINO's runtime info. An
OpenVINO model is converted from the ONNX graph, so there is one graph to test.

Letters: B images, H x W pixels, D the length of the embedding.
"""

import hashlib
import importlib
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from airnet_cli.core.model.airnet import AirNet
from airnet_cli.errors import CheckpointError, RuntimeSetupError

FORMAT = "airnet-exported"
FORMAT_VERSION = 1

ExportFormat = Literal["onnx", "openvino"]
SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "openvino": ".xml"}

OPSET = 18
"""Of ONNX: what the exporter writes without converting versions, read by engines since 2023."""

INPUT, OUTPUT = "images", "embeddings"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What an exported file says of itself."""

    fingerprint: str
    """SHA-256 of the checkpoint that it was exported from."""
    heads: dict[str, slice]
    """Each head's part of an embedding."""
    height_px: int
    width_px: int
    variant: str
    backbone: str
    normalize_heads: bool
    """Whether each head's part is to be given length 1 afterwards; the graph does not do it."""
    versions: dict[str, str]
    """Of what exported it."""

    def to_metadata(self) -> dict[str, str]:
        """Texts by name, as both formats store them."""
        return {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "fingerprint": self.fingerprint,
            "heads": json.dumps({name: [s.start, s.stop] for name, s in self.heads.items()}),
            "preprocessing": json.dumps(
                {
                    "height_px": self.height_px,
                    "width_px": self.width_px,
                    "layout": "NHWC",
                    "dtype": "uint8",
                    "colour": "RGB",
                    "interpolation": "bilinear, antialiased",
                }
            ),
            "variant": self.variant,
            "backbone": self.backbone,
            "normalize_heads": json.dumps(self.normalize_heads),
            "versions": json.dumps(self.versions),
        }


def read_description(path: Path, metadata: dict[str, str]) -> Description:
    """The description in the metadata of the exported file `path`.

    Raises:
        CheckpointError: airnet did not export it, or in a format that this one does not read.
    """
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"'{path}' was not exported by airnet; `airnet export` writes such files"
        )
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"'{path}' has format version {metadata.get('format_version')}, this airnet reads "
            f"{FORMAT_VERSION}; export it again, or update airnet"
        )
    try:
        preprocessing = json.loads(metadata["preprocessing"])
        heads = json.loads(metadata["heads"])
        return Description(
            fingerprint=metadata["fingerprint"],
            heads={name: slice(int(start), int(stop)) for name, (start, stop) in heads.items()},
            height_px=int(preprocessing["height_px"]),
            width_px=int(preprocessing["width_px"]),
            variant=metadata["variant"],
            backbone=metadata["backbone"],
            normalize_heads=bool(json.loads(metadata["normalize_heads"])),
            versions={str(k): str(v) for k, v in json.loads(metadata["versions"]).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' lacks or garbles {error} in its metadata; export it again"
        ) from None


def check_exportable(kind: ExportFormat) -> None:
    """Refuse, before any work, what is not installed.

    Raises:
        RuntimeSetupError: a package of the extra `airnet[onnx]` or `airnet[openvino]` is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if kind == "onnx":
            import onnxruntime  # noqa: F401
        else:
            import_openvino()
    except ImportError as error:
        raise RuntimeSetupError(
            f"exporting to {kind} needs {error.name}, which is not installed: "
            f"pip install 'airnet[{kind}]'"
        ) from None


def import_openvino() -> Any:
    """The module `openvino`, imported without the part of it that reports to its maker.

    Merely importing it sends an event over the network by `openvino_telemetry`, where that is
    installed. It does without where that is missing, so it is made to look so.

    Raises:
        ImportError: it is not installed.
    """
    telemetry = "openvino_telemetry"
    before = sys.modules.get(telemetry)
    sys.modules[telemetry] = None  # type: ignore[assignment]  # Python's way to say: not there
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[telemetry]
        if before is not None:
            sys.modules[telemetry] = before


def exported_files(path: Path, kind: ExportFormat) -> tuple[Path, ...]:
    """The files of the exported model `path`, in the order in which they are put into place."""
    return (path,) if kind == "onnx" else (path.with_suffix(".bin"), path)


def write_onnx(path: Path, network: AirNet, description: Description) -> None:
    """Write `network` (on the CPU, in evaluation mode) as one ONNX file at `path`.

    The same checkpoint and versions give the same bytes.
    """
    import onnx

    size = (description.height_px, description.width_px)
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about torch's own insides
        program = torch.onnx.export(
            _Embedding(network).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    assert program is not None, "with dynamo=True the exporter returns the program"
    model = program.model_proto
    _forget_where_it_was_made(model)
    onnx.helper.set_model_props(model, description.to_metadata())
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_openvino(path: Path, onnx_path: Path, description: Description) -> None:
    """Write the ONNX model at `onnx_path` as OpenVINO's `path` (.xml) and the .bin beside it.

    Weights stay float32. Their hash is in the .xml, so that a .bin of another model is noticed.
    """
    openvino = import_openvino()
    model = openvino.Core().read_model(str(onnx_path))
    weights = path.with_suffix(".bin")
    for name, text in description.to_metadata().items():
        model.set_rt_info(text, ["airnet", name])
    openvino.serialize(model, str(path), str(weights))
    model.set_rt_info(file_hash(weights), ["airnet", WEIGHTS_HASH])
    openvino.serialize(model, str(path), str(weights))


WEIGHTS_HASH = "weights_sha256"
"""Of the .bin, in OpenVINO's runtime info."""


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Embedding(nn.Module):
    """The network as a function of pictures as PIL and NumPy have them."""

    def __init__(self, network: AirNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images` (B, H, W, 3) uint8."""
        return self.network.embed(images.permute(0, 3, 1, 2))


def _forget_where_it_was_made(model: Any) -> None:
    """Drop what the exporter notes beside each node: stack traces with this machine's paths."""
    graph = model.graph
    graph.ClearField("metadata_props")
    for part in (graph.node, graph.initializer, graph.input, graph.output):
        for each in part:
            each.ClearField("metadata_props")
            each.ClearField("doc_string")
    graph.ClearField("value_info")
