"""Export a network for an engine without torch, and hold what it computes against torch at once.

The file is put into place only if the embeddings of real pictures are those of the checkpoint: the
smallest cosine, of the whole and of every head alone, is what the user is told.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from airnet_cli.core.checkpoint import library_versions
from airnet_cli.core.data.demo import generate
from airnet_cli.core.data.manifest import load_prepared, manifest_path
from airnet_cli.core.data.records import JUNK
from airnet_cli.core.data.sources import list_images
from airnet_cli.core.data.transforms import read_image
from airnet_cli.core.engines import Engine, open_engine
from airnet_cli.core.exported import (
    OPSET,
    SUFFIXES,
    Description,
    ExportFormat,
    check_exportable,
    exported_files,
    write_onnx,
    write_openvino,
)
from airnet_cli.core.files import lock_output, remove_parts, replacing_together
from airnet_cli.core.progress import Progress, silent
from airnet_cli.errors import DataError, OutputError, RuntimeSetupError, UsageError
from airnet_cli.workflows.embedder import Embedder, exported_path
from airnet_cli.workflows.runs import Model, find_model

JSON_VERSION = 1

SMALLEST_COSINE = 0.9999
"""Of an exported network's embedding and torch's, in float32; a worse one is refused."""

MOST_IMAGES = 32
"""Pictures that are compared, spread over those that there are."""
_BATCH = 8
_DRAWN_SEED = 7


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How near the engine's vectors are to torch's, over all pictures."""

    smallest_cosine: float
    largest_difference: float
    """Between two numbers of the vectors."""
    largest_value: float
    """Of the numbers themselves, without sign: what the difference is to be seen beside."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The comparison that a file had to pass."""

    images: int
    source: str
    """Where the pictures come from, in words."""
    whole: Agreement
    heads: dict[str, Agreement]

    @property
    def smallest_cosine(self) -> float:
        """Of the whole and of each head."""
        return min(each.smallest_cosine for each in (self.whole, *self.heads.values()))


@dataclass(frozen=True, kw_only=True)
class ExportedNetwork:
    """A file that was written, and what it is of."""

    files: tuple[Path, ...]
    """All of them; the last one is the one to name."""
    format: ExportFormat
    engine: str
    """That the pictures went through, with its version."""
    model: Model
    description: Description
    parity: Parity

    @property
    def path(self) -> Path:
        """The file that `--exported` takes."""
        return self.files[-1]

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `export --json` (docs/formats.md)."""
        described = self.description
        return {
            "version": JSON_VERSION,
            "exported": str(self.path),
            "format": self.format,
            "opset": OPSET,
            "files": [{"path": str(file), "bytes": file.stat().st_size} for file in self.files],
            "fingerprint": described.fingerprint,
            "checkpoint": str(self.model.checkpoint),
            "run": None if self.model.run is None else self.model.run.resolve().name,
            "heads": {name: [part.start, part.stop] for name, part in described.heads.items()},
            "height_px": described.height_px,
            "width_px": described.width_px,
            "engine": self.engine,
            "parity": {
                "images": self.parity.images,
                "source": self.parity.source,
                "smallest_cosine": self.parity.smallest_cosine,
                "whole": asdict(self.parity.whole),
                "heads": {name: asdict(each) for name, each in self.parity.heads.items()},
            },
        }


def export(
    *,
    model: Path | None,
    runs_root: Path,
    kind: ExportFormat,
    output: Path | None,
    images: Sequence[Path],
    data_root: Path,
    on_model: Callable[[Model], None],
    noted: Callable[[str], None],
    progress: Progress = silent,
) -> ExportedNetwork:
    """Export a network as `kind`, and check it, into `output` or beside its checkpoint.

    It is checked on pictures of `images`; without any, on queries of the run's prepared data set
    under `data_root`; where that is not there, on people who are drawn for it. `noted` hears which.

    Raises:
        UsageError: `output` has another suffix than this format.
        RuntimeSetupError: a package is missing, or the engine's embeddings are not torch's: nothing
            is left then.
        CheckpointError: no such run or checkpoint.
        DataError: a picture can't be read, or another process writes the same output.
        OutputError: the place can't be written.
    """
    suffix = SUFFIXES[kind]
    if output is not None and output.suffix != suffix:
        raise UsageError(f"output '{output}' must end in {suffix} for {kind}, as in model{suffix}")
    check_exportable(kind)
    found = find_model(model, runs_root)
    on_model(found)
    embedder = Embedder.load(found.checkpoint, device="cpu")
    place = exported_path(found.checkpoint, kind) if output is None else output
    files = exported_files(place, kind)
    with _pictures(embedder, images, data_root) as (paths, source), _alone_with(place, files):
        noted(f"checked on {len(paths)} pictures of {source}")
        pictures = torch.stack(
            [
                read_image(path, height_px=embedder.height_px, width_px=embedder.width_px)
                for path in paths
            ]
        )
        with replacing_together(files) as written:
            description = _write(written, embedder, kind, progress)
            engine = open_engine(
                written[-1], kind=kind, precision="fp32", threads=torch.get_num_threads()
            )
            version = engine.version
            parity = compare(embedder, engine, pictures, source=source, progress=progress)
            del engine  # its map of the file, so that it can be moved everywhere
            if not parity.smallest_cosine >= SMALLEST_COSINE:  # so that NaN does not pass
                raise RuntimeSetupError(_refusal(parity, version))
    return ExportedNetwork(
        files=files,
        format=kind,
        engine=version,
        model=found,
        description=description,
        parity=parity,
    )


def compare(
    embedder: Embedder,
    engine: Engine,
    pictures: Tensor,
    *,
    source: str,
    progress: Progress = silent,
) -> Parity:
    """Hold the engine's embeddings of `pictures` (N, 3, H, W) uint8 against torch's.

    The first goes alone and the others in batches, since the size of a batch is free.
    """
    starts = [0, *range(1, len(pictures), _BATCH), len(pictures)]
    batches = [pictures[start:end] for start, end in itertools.pairwise(starts)]
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    done = 0
    progress("checking", done, len(pictures), "images")
    for batch in batches:
        ours.append(embedder.embed_tensor(batch))
        theirs.append(engine.embed(batch))
        done += len(batch)
        progress("checking", done, len(pictures), "images")
    expected, computed = torch.cat(ours).double(), torch.cat(theirs).double()
    return Parity(
        images=len(pictures),
        source=source,
        whole=_agreement(expected, computed),
        heads={
            name: _agreement(expected[:, part], computed[:, part])
            for name, part in embedder.network.head_slices.items()
        },
    )


def _agreement(expected: Tensor, computed: Tensor) -> Agreement:
    """Of vectors (N, D) in float64."""
    return Agreement(
        smallest_cosine=float(nn.functional.cosine_similarity(expected, computed).min()),
        largest_difference=float((expected - computed).abs().max()),
        largest_value=float(expected.abs().max()),
    )


def _refusal(parity: Parity, engine: str) -> str:
    parts = {"the whole": parity.whole} | {f"head {k}": v for k, v in parity.heads.items()}
    worst, agreement = min(parts.items(), key=lambda part: _or_worst(part[1].smallest_cosine))
    return (
        f"{engine} does not compute what torch does: the smallest cosine is "
        f"{agreement.smallest_cosine:.6f} ({worst}; {parity.images} pictures of {parity.source}), "
        f"and must be {SMALLEST_COSINE}; nothing was written; take another version of the engine, "
        "or the runtime torch"
    )


def _or_worst(cosine: float) -> float:
    return cosine if cosine == cosine else -2.0  # NaN


def _write(
    files: Sequence[Path], embedder: Embedder, kind: ExportFormat, progress: Progress
) -> Description:
    """Write the files of the format; an OpenVINO model by way of an ONNX one, which is removed."""
    description = Description(
        fingerprint=embedder.fingerprint,
        heads=embedder.network.head_slices,
        height_px=embedder.height_px,
        width_px=embedder.width_px,
        variant=embedder.preset.model.variant,
        backbone=embedder.preset.model.backbone,
        normalize_heads=embedder.normalize_heads,
        versions=library_versions(),
    )
    progress("exporting", 0, 1, "networks")
    graph = files[-1].with_suffix(SUFFIXES["onnx"])
    write_onnx(graph, embedder.network, description)
    if kind == "openvino":
        write_openvino(files[-1], graph, description)
        graph.unlink()
    progress("exporting", 1, 1, "networks")
    return description


@contextlib.contextmanager
def _pictures(
    embedder: Embedder, images: Sequence[Path], data_root: Path
) -> Iterator[tuple[list[Path], str]]:
    """The pictures to compare, and in words where they are from; those that are drawn go again."""
    name = embedder.preset.data.name
    if images:
        source = ", ".join(f"'{each}'" for each in images)
        yield _spread(list_images(images, must_exist=True).paths), source
    elif manifest_path(data_root, name).is_file():
        manifest = load_prepared(data_root, name)
        records = manifest.split("query") or manifest.records
        paths = [manifest.root / each.path for each in records if each.person_id != JUNK]
        yield _spread(paths), f"the data set {name}"
    else:
        try:
            with tempfile.TemporaryDirectory(prefix="airnet-") as temporary:
                records = tuple(
                    generate(
                        Path(temporary),
                        seed=_DRAWN_SEED,
                        train_identities=3,
                        test_identities=0,
                        processes=1,
                    )
                )
                train = [record for record in records if record.split == "train"]
                paths = [Path(temporary) / record.path for record in train]
                reason = f"the data set {name} is not under '{data_root}'"
                yield _spread(paths), f"people who were drawn for it ({reason}; or give --images)"
        except OSError as error:
            raise OutputError(
                f"can't draw pictures to compare: {error.strerror or error}; give some with "
                "--images"
            ) from None


def _spread(paths: Sequence[Path]) -> list[Path]:
    """At most `MOST_IMAGES`, evenly over all.

    >>> [path.name for path in _spread([Path(str(i)) for i in range(65)])][:4]
    ['0', '2', '4', '6']
    """
    count = min(MOST_IMAGES, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


@contextlib.contextmanager
def _alone_with(place: Path, files: Sequence[Path]) -> Iterator[None]:
    """Lock the output while it is written, and remove what a killed export left."""
    with lock_output(place) as is_ours:
        if not is_ours:
            raise DataError(
                f"'{place}' is being written by another process; wait for it, or choose another "
                "place with -o"
            )
        for file in files:
            remove_parts(file.parent, file.name)
        yield
