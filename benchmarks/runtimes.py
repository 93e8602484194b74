"""The network alone by ONNX Runtime and OpenVINO, beside torch (channels-last, float32).

Random weights: the time is the same. Engines that are not installed have no row.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from airnet_cli.core.engines import open_engine
from airnet_cli.core.exported import (
    SUFFIXES,
    Description,
    ExportFormat,
    check_exportable,
    write_onnx,
    write_openvino,
)
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import BackboneName
from airnet_cli.core.runtime import PrecisionName, has_native_bfloat16
from airnet_cli.errors import RuntimeSetupError
from airnet_cli.workflows.memory import keep_freed_memory
from benchmarks.embed import CPU, alone, build
from benchmarks.measure import Row, Sizes, in_turn

BACKBONES: tuple[tuple[BackboneName, int, int, int], ...] = (
    ("mobilenet_v2", 128, 64, 32),
    ("resnet50", 384, 192, 8),
)
QUICK: tuple[tuple[BackboneName, int, int, int], ...] = (("resnet18", 128, 64, 32),)
"""Exporting the others takes long."""
ENGINES: tuple[tuple[ExportFormat, PrecisionName, str], ...] = (
    ("onnx", "fp32", "2 times faster"),
    ("openvino", "fp32", "2 times faster"),
    ("openvino", "bf16", "3 to 4 times faster"),
)


def rows(sizes: Sizes) -> Iterator[Row]:
    """Each backbone by each engine."""
    keep_freed_memory()
    engines = [engine for engine in ENGINES if _is_there(engine[0], engine[1])]
    if not engines:
        return
    for backbone, height, width, batch in sizes.pick(BACKBONES, QUICK):
        network = build(backbone)
        ready = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
        with tempfile.TemporaryDirectory() as folder:
            path = _export(Path(folder), network, height, width, {kind for kind, *_ in engines})
            for kind, precision, target in engines:
                engine = open_engine(
                    path.with_suffix(SUFFIXES[kind]),
                    kind=kind,
                    precision=precision,
                    threads=torch.get_num_threads(),
                )
                seconds, rival_seconds = in_turn(
                    partial(engine.embed, ready),
                    partial(alone, network, ready, batch),
                    turns=sizes.pick(10, 5),
                )
                yield Row(
                    path="runtimes",
                    case=f"{backbone}, {height} x {width}, batch {batch}, {kind} in {precision}",
                    rival="torch in fp32",
                    seconds=seconds,
                    rival_seconds=rival_seconds,
                    ratio_is="rival / ours",
                    target=target,
                    note=f"{batch / seconds:.1f} and {batch / rival_seconds:.1f} images/s",
                )


def _export(folder: Path, network: AirNet, height: int, width: int, kinds: set[str]) -> Path:
    description = Description(
        fingerprint="",
        heads=network.head_slices,
        height_px=height,
        width_px=width,
        variant=network.variant,
        backbone="",
        normalize_heads=False,
        versions={},
    )
    path = folder / "model.onnx"
    write_onnx(path, network, description)
    if "openvino" in kinds:
        write_openvino(path.with_suffix(SUFFIXES["openvino"]), path, description)
    return path


def _is_there(kind: ExportFormat, precision: PrecisionName) -> bool:
    try:
        check_exportable(kind)
    except RuntimeSetupError:
        return False
    return precision == "fp32" or has_native_bfloat16(CPU)
