"""What runs an exported network: ONNX Runtime or OpenVINO, on the CPU, beside torch.

An `Engine` has the two things that embedding asks of a network, `embed` and `head_slices`, so that
everything around it (heads, mirror images, lengths) is the same code for all of them.

Letters: B images, H x W pixels, D the length of the embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from airnet_cli.core.exported import (
    INPUT,
    OUTPUT,
    WEIGHTS_HASH,
    Description,
    ExportFormat,
    exported_files,
    file_hash,
    import_openvino,
    read_description,
)
from airnet_cli.core.runtime import PrecisionName
from airnet_cli.errors import CheckpointError, RuntimeSetupError

RuntimeName = Literal["torch", "onnx", "openvino"]

_Run = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]

_PACKAGES: dict[ExportFormat, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
_PRECISIONS: dict[ExportFormat, tuple[PrecisionName, ...]] = {
    "onnx": ("fp32",),
    "openvino": ("fp32", "bf16"),
}


@dataclass(frozen=True)
class Engine:
    """An exported network, ready to run."""

    path: Path
    description: Description
    version: str
    """The engine's package and its version."""
    _run: _Run

    @property
    def head_slices(self) -> dict[str, slice]:
        """Where each head's vector lies in the embedding."""
        return self.description.heads

    def embed(self, images: Tensor) -> Tensor:
        """The embeddings (B, D), float32, of RGB `images` (B, 3, H, W) on the CPU.

        uint8 in 0-255, or floating point in 0-1, which is rounded to 8 bits.
        """
        if images.dtype != torch.uint8:
            images = (images * 255).round().to(torch.uint8)
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()  # (B, H, W, 3)
        return torch.from_numpy(self._run(pixels))


def check_engine(kind: ExportFormat, precision: PrecisionName) -> None:
    """Refuse, before any work, what is not installed or what the engine does not compute in.

    Raises:
        RuntimeSetupError: one of both.
    """
    if precision not in _PRECISIONS[kind]:
        raise RuntimeSetupError(
            f"runtime '{kind}' computes in {' or '.join(_PRECISIONS[kind])}, not in {precision}; "
            "choose another --precision or --runtime"
        )
    _import_engine(kind)


def open_engine(
    path: Path, *, kind: ExportFormat, precision: PrecisionName, threads: int
) -> Engine:
    """Read the exported network `path` and get it ready to run on `threads` threads.

    Raises:
        CheckpointError: the file is missing, broken, or was not exported by this airnet's format.
        RuntimeSetupError: as `check_engine`.
    """
    check_engine(kind, precision)
    for file in exported_files(path, kind):
        if not file.is_file():
            raise CheckpointError(
                f"'{file}' does not exist; `airnet export --format {kind}` writes it"
            )
    package = _PACKAGES[kind]
    version = f"{package} {metadata.version(package)}"
    start = _start_onnx if kind == "onnx" else _start_openvino
    try:
        texts, run = start(path, precision, threads)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{package} can't read '{path}': {_first_line(error)}; export it again"
        ) from None
    return Engine(path, read_description(path, dict(texts)), version, run)


def _start_onnx(
    path: Path, precision: PrecisionName, threads: int
) -> tuple[Mapping[str, str], _Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for work by spinning take the cores from those that read images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors alone, and they are raised
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own classes, which have no parent but Exception
        raise RuntimeError(_first_line(error)) from None

    def run(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (embeddings,) = session.run([OUTPUT], {INPUT: pixels})
        result: npt.NDArray[np.float32] = embeddings
        return result

    texts: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return texts, run


def _start_openvino(
    path: Path, precision: PrecisionName, threads: int
) -> tuple[Mapping[str, str], _Run]:
    openvino = import_openvino()
    with path.open("rb") as file:
        if not file.read(100).lstrip().startswith(b"<"):  # or it tries all its other formats, aloud
            raise ValueError("it is no XML")
    core = openvino.Core()
    model = core.read_model(str(path))
    texts = _runtime_info(model)
    if texts.pop(WEIGHTS_HASH, None) != file_hash(path.with_suffix(".bin")):
        raise ValueError(f"{path.with_suffix('.bin').name} is not the one that it was written with")
    compiled = core.compile_model(
        model,
        "CPU",
        {
            # Left to itself it computes in bfloat16 where the processor has it.
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
        },
    )
    request = compiled.create_infer_request()

    def run(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        # A copy: the request writes the next batch into the same memory.
        return np.array(request.infer({INPUT: pixels})[OUTPUT], np.float32)

    return texts, run


def _runtime_info(model: Any) -> dict[str, str]:
    if not model.has_rt_info(["airnet"]):
        return {}
    info: dict[str, Any] = model.get_rt_info(["airnet"]).value
    return {name: str(getattr(text, "value", text)) for name, text in info.items()}


def _import_engine(kind: ExportFormat) -> None:
    try:
        if kind == "onnx":
            import onnxruntime  # noqa: F401
        else:
            import_openvino()
    except ImportError as error:
        raise RuntimeSetupError(
            f"runtime '{kind}' needs {error.name}, which is not installed: "
            f"pip install 'airnet[{kind}]'"
        ) from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
