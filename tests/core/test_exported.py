"""The exported network: the same vectors as torch, and what stands in the file beside the graph."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from airnet_cli.core.engines import Engine, check_engine, open_engine
from airnet_cli.core.exported import (
    OPSET,
    Description,
    check_exportable,
    exported_files,
    read_description,
    write_onnx,
    write_openvino,
)
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.model.backbone import Backbone, InstanceBatchNorm, StridedDepthwiseConv2d
from airnet_cli.core.model.pooling import GlobalContext
from airnet_cli.errors import CheckpointError, RuntimeSetupError

HEIGHT, WIDTH, CHANNELS = 16, 8, 32


@pytest.fixture(autouse=True)
def _onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs {name}: pip install 'airnet[onnx]'")


def tiny_network(variant: Any = "airnet") -> AirNet:
    """Every layer that is ours, few of each: real backbones take the exporter long."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        InstanceBatchNorm(16),
        nn.ReLU(inplace=True),
        StridedDepthwiseConv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.ReLU6(inplace=True),
        GlobalContext(16),
    )
    stage5 = nn.Sequential(nn.Conv2d(16, CHANNELS, 1), nn.BatchNorm2d(CHANNELS))
    torch.manual_seed(4)
    backbone = Backbone(trunk, stage5, CHANNELS, "", "", "")
    network = AirNet(backbone, variant=variant, identities=3)
    for module in network.modules():  # what is trained starts at constants
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, GlobalContext):
            nn.init.normal_(module.channel_add_conv[-1].weight)
    return network.to(memory_format=torch.channels_last).eval()


def describe(network: AirNet, **changed: Any) -> Description:
    values: dict[str, Any] = {
        "fingerprint": "ab" * 32,
        "heads": network.head_slices,
        "height_px": HEIGHT,
        "width_px": WIDTH,
        "variant": network.variant,
        "backbone": "resnet18",
        "normalize_heads": False,
        "versions": {"airnet": "0.1.0"},
    }
    return Description(**values | changed)


def pictures(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=random)


def assert_same_vectors(engine: Engine, network: AirNet, *, cosine: float) -> None:
    for count in (1, 3):
        with torch.inference_mode():
            expected = network.embed(pictures(count))
        computed = engine.embed(pictures(count))
        assert computed.dtype == torch.float32
        assert nn.functional.cosine_similarity(expected, computed).min() > cosine


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[AirNet, Path]:
    """AIR-Net, and the ONNX file of it."""
    network = tiny_network()
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    write_onnx(path, network, describe(network))
    return network, path


def test_mixed_head(tmp_path: Path) -> None:
    """The head that AIR-Net lacks comes out the same."""
    network = tiny_network("airnet_gc")
    write_onnx(tmp_path / "m.onnx", network, describe(network))
    engine = open_engine(tmp_path / "m.onnx", kind="onnx", precision="fp32", threads=1)
    assert_same_vectors(engine, network, cosine=0.99999)


def test_onnx_computes_what_torch_does(tiny: tuple[AirNet, Path]) -> None:
    """For one image and for several, of which the graph knows nothing beforehand."""
    network, path = tiny
    engine = open_engine(path, kind="onnx", precision="fp32", threads=1)
    assert_same_vectors(engine, network, cosine=0.99999)
    assert engine.description == describe(network)
    assert engine.head_slices == network.head_slices
    assert engine.version.startswith("onnxruntime ")


def test_floating_point_images_are_rounded(tiny: tuple[AirNet, Path]) -> None:
    """0-1 and 0-255 give the same, as everywhere."""
    engine = open_engine(tiny[1], kind="onnx", precision="fp32", threads=1)
    torch.testing.assert_close(engine.embed(pictures(2) / 255), engine.embed(pictures(2)))


def test_what_is_in_an_onnx_file(tiny: tuple[AirNet, Path]) -> None:
    """Pictures as PIL has them go in, by the names that are documented; one file, checked."""
    import onnx

    network, path = tiny
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {each.domain: each.version for each in model.opset_import} == {"": OPSET}
    (images,), (embeddings,) = model.graph.input, model.graph.output
    assert (images.name, embeddings.name) == ("images", "embeddings")
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [each.dim_value or each.dim_param for each in images.type.tensor_type.shape.dim]
    assert sizes == ["batch", HEIGHT, WIDTH, 3]
    assert embeddings.type.tensor_type.shape.dim[1].dim_value == network.embedding_size
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


def test_the_file_does_not_say_where_it_was_made(tiny: tuple[AirNet, Path]) -> None:
    """The exporter notes stack traces, with the paths of this machine, beside each node."""
    content = tiny[1].read_bytes()
    for text in (b"stack_trace", b"airnet.py", str(Path(torch.__file__).parent).encode()):
        assert text not in content


@pytest.mark.soak
def test_the_same_network_is_the_same_file(tiny: tuple[AirNet, Path], tmp_path: Path) -> None:
    """So that a file can be told by its hash; the network is left as it was."""
    network, path = tiny
    before = copy.deepcopy(network.state_dict())
    write_onnx(tmp_path / "again.onnx", network, describe(network))
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def tiny_openvino(
    needs_openvino: None, tiny: tuple[AirNet, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[AirNet, Path]:
    """The same in OpenVINO's format."""
    network, graph = tiny
    path = tmp_path_factory.mktemp("exported") / "model.xml"
    write_openvino(path, graph, describe(network))
    return network, path


def test_openvino_computes_what_torch_does(tiny_openvino: tuple[AirNet, Path]) -> None:
    """In float32, whatever the processor prefers; a result stays when the next one is computed."""
    network, path = tiny_openvino
    engine = open_engine(path, kind="openvino", precision="fp32", threads=1)
    assert_same_vectors(engine, network, cosine=0.99999)
    assert engine.description == describe(network)
    first = engine.embed(pictures(1))
    kept = first.clone()
    engine.embed(255 - pictures(1))
    assert torch.equal(first, kept)


IMPORT_OPENVINO = """
import os
import subprocess
import sys
from airnet_cli.core.exported import import_openvino

def tell(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect", "os.fork", "subprocess.Popen"):
        print(event, arguments)

sys.addaudithook(tell)
assert import_openvino() is sys.modules["openvino"]
assert "openvino_telemetry" not in sys.modules
"""


@pytest.mark.slow
def test_importing_openvino_reports_to_nobody(needs_openvino: None, tmp_path: Path) -> None:
    """By itself it starts a process that tells its maker, and keeps a number in the home folder."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_OPENVINO],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_openvino_in_bfloat16(tiny_openvino: tuple[AirNet, Path]) -> None:
    """Nearly the same vectors."""
    network, path = tiny_openvino
    engine = open_engine(path, kind="openvino", precision="bf16", threads=1)
    assert_same_vectors(engine, network, cosine=0.99)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.bin", b"\0" * 40_000, "can't be read|can't read"),
        ("model.bin", None, "model.bin' does not exist; `airnet export --format openvino`"),
        ("model.xml", b"<html></html>", "can't read"),
        ("model.xml", b"no XML", "it is no XML; export it again"),
    ],
    ids=["other weights", "no weights", "another XML", "no XML"],
)
def test_a_broken_pair(
    tiny_openvino: tuple[AirNet, Path],
    tmp_path: Path,
    file: str,
    content: bytes | None,
    message: str,
) -> None:
    """Graph and weights that do not belong together are refused, and said to be."""
    for each in exported_files(tiny_openvino[1], "openvino"):
        (tmp_path / each.name).write_bytes(each.read_bytes())
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_engine(tmp_path / "model.xml", kind="openvino", precision="fp32", threads=1)


def test_weights_of_another_network(tiny_openvino: tuple[AirNet, Path], tmp_path: Path) -> None:
    """Of the right size, so that only their hash tells."""
    for each in exported_files(tiny_openvino[1], "openvino"):
        content = bytearray(each.read_bytes())
        if each.suffix == ".bin":
            content[100] ^= 1
        (tmp_path / each.name).write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"model\.bin is not the one that it was written with"
    ):
        open_engine(tmp_path / "model.xml", kind="openvino", precision="fp32", threads=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; `airnet export --format onnx` writes it"),
        (b"<html>", r"onnxruntime can't read '.*m\.onnx': .*; export it again"),
    ],
    ids=["none", "no ONNX"],
)
def test_no_onnx_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    """One line says what it is not."""
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_engine(tmp_path / "m.onnx", kind="onnx", precision="fp32", threads=1)


def test_a_foreign_onnx_file(tmp_path: Path) -> None:
    """Of another tool: it has no description of ours."""
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CheckpointError, match=r"m\.onnx' was not exported by airnet"):
        open_engine(tmp_path / "m.onnx", kind="onnx", precision="fp32", threads=1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "other"}, "was not exported by airnet"),
        ({"format_version": "9"}, "has format version 9, this airnet reads 1"),
        ({"heads": "["}, "lacks or garbles"),
        ({"heads": "[1]"}, "lacks or garbles"),
        ({"preprocessing": "{}"}, "lacks or garbles 'height_px'"),
        ({"versions": None}, "lacks or garbles 'versions'"),
    ],
    ids=["format", "version", "no JSON", "no heads", "no size", "no versions"],
)
def test_a_description_that_is_wrong(changed: dict[str, str | None], message: str) -> None:
    """Each is one line with the file's name."""
    texts: dict[str, str | None] = {**describe(tiny_network()).to_metadata(), **changed}
    given = {name: text for name, text in texts.items() if text is not None}
    with pytest.raises(CheckpointError, match=message):
        read_description(Path("m.onnx"), given)


def test_a_description_is_read_as_it_was_written() -> None:
    """All of it."""
    described = describe(tiny_network("baseline"), normalize_heads=True)
    assert read_description(Path("m.onnx"), described.to_metadata()) == described


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("onnx", "onnx"),
        ("onnx", "onnxscript"),
        ("onnx", "onnxruntime"),
        ("openvino", "openvino"),
    ],
)
def test_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, kind: Any, package: str
) -> None:
    """It is named, and the extra that has it."""
    monkeypatch.setitem(sys.modules, package, None)
    hint = rf"{package}, which is not installed: pip install 'airnet\[{kind}\]'"
    with pytest.raises(RuntimeSetupError, match=f"exporting to {kind} needs {hint}"):
        check_exportable(kind)
    if package in ("onnxruntime", "openvino"):
        with pytest.raises(RuntimeSetupError, match=f"runtime '{kind}' needs {hint}"):
            check_engine(kind, "fp32")


@pytest.mark.parametrize(
    ("kind", "precision", "there"),
    [("onnx", "bf16", "fp32"), ("onnx", "fp16", "fp32"), ("openvino", "fp16", "fp32 or bf16")],
)
def test_a_precision_that_an_engine_lacks(kind: Any, precision: Any, there: str) -> None:
    """What it computes in is said."""
    with pytest.raises(
        RuntimeSetupError, match=f"'{kind}' computes in {there}, not in {precision}"
    ):
        check_engine(kind, precision)
