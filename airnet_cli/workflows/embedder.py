"""The friendly object: images in, embeddings out; and where all commands get their network.

`Embedder.load` reads a run folder or a checkpoint file; calling the embedder takes what programs
have at hand (paths, PIL images, NumPy arrays, tensors); `embed_paths` streams any number of files.
All of them go through one preprocessing, the one of training.

Letters: N and B images, H x W pixels, D = the length of the embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from airnet_cli.config.schema import Preset
from airnet_cli.core.checkpoint import Checkpoint, model_fingerprint, read_checkpoint
from airnet_cli.core.data.dataset import raise_for_bad
from airnet_cli.core.data.images import upright_rgb
from airnet_cli.core.data.transforms import image_tensor, read_image
from airnet_cli.core.engines import Engine, RuntimeName, check_engine, open_engine
from airnet_cli.core.exported import SUFFIXES, ExportFormat
from airnet_cli.core.inference import EmbeddedBatch, embed_batches, embed_tensor
from airnet_cli.core.model.airnet import AirNet
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import (
    DeviceName,
    PrecisionName,
    choose_device,
)
from airnet_cli.errors import CheckpointError, DataError, RuntimeSetupError, UsageError
from airnet_cli.workflows.build import restore_network
from airnet_cli.workflows.runs import find_model

ImageLike = str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor
"""An image, or for arrays and tensors also a batch of them; see `Embedder.__call__`."""

Embeddings = npt.NDArray[np.float32]

OnBadImage = Literal["error", "skip"]


class Embedder:
    """A trained network, ready to turn images into embeddings.

    Embeddings are compared by the cosine of the whole; each head's slice (`heads`) may be compared
    alone. They are comparable with each other where `fingerprint`, `heads`, `flip` and
    `normalize_heads` are the same.

    An untrained network does for an example; a program gives the path of its run:

    >>> from airnet_cli import Embedder
    >>> embedder = Embedder.load(run, device="cpu", heads=["A1", "I"])
    >>> embedder([crop, crop.rotate(180)]).shape
    (2, 1024)
    >>> embedder.heads
    {'A1': slice(0, 512, None), 'I': slice(512, 1024, None)}
    """

    network: AirNet
    """In evaluation mode, on `device`; takes uint8 or 0-1 RGB."""
    preset: Preset
    """What the network was trained with."""
    checkpoint: Checkpoint
    """Where it came from; its `tensors` are empty, since the network holds them."""
    fingerprint: str
    """SHA-256 of the checkpoint file."""
    heads: dict[str, slice]
    """Each head's part of the embeddings that come out."""
    dimensions: int
    """D."""
    height_px: int
    width_px: int
    device: torch.device
    engine: Engine | None
    """What runs the exported network; None: torch runs `network`."""
    precision: PrecisionName
    flip: bool
    normalize_heads: bool
    """Each head's part has length 1: the setting of the preset (off in the paper)."""
    batch_size: int
    workers: int

    def __init__(
        self,
        network: AirNet,
        preset: Preset,
        checkpoint: Checkpoint,
        *,
        fingerprint: str,
        device: torch.device,
        precision: PrecisionName,
        heads: Sequence[str] | None,
        flip: bool,
        batch_size: int,
        workers: int,
        engine: Engine | None = None,
    ) -> None:
        """Take the parts as they are; `Embedder.load` is the usual way."""
        self.network = network.to(device).eval()
        self.preset = preset
        self.checkpoint = checkpoint
        self.fingerprint = fingerprint
        self.heads = choose_heads(network.head_slices, heads)
        self.dimensions = sum(part.stop - part.start for part in self.heads.values())
        self.height_px = checkpoint.height_px
        self.width_px = checkpoint.width_px
        self.device = device
        self.engine = engine
        self.precision = precision
        self.flip = flip
        self.normalize_heads = preset.evaluation.normalize_heads
        self.batch_size = batch_size
        self.workers = workers

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: DeviceName = "auto",
        precision: PrecisionName = "fp32",
        heads: Sequence[str] | None = None,
        flip: bool = False,
        batch_size: int = 64,
        workers: int = 0,
        runtime: RuntimeName = "torch",
        exported: str | Path | None = None,
    ) -> "Embedder":
        """Read a run folder or a checkpoint file.

        Args:
            path: a run folder, or a `.safetensors` checkpoint.
            device: where to compute; `auto` takes a GPU where there is one.
            precision: `bf16` and `fp16` are faster on GPUs, and change the last digits.
            heads: only these heads of the network (A1, A2, I, M), in the network's order whatever
                the order here; None for all.
            flip: the mean of the embeddings of image and mirror image; twice the work.
            batch_size: images that go through the network together.
            workers: processes that read files; 0 reads in this one.
            runtime: what computes: torch, or an engine for what `airnet export` wrote: `onnx`
                (ONNX Runtime) and `openvino`, on the CPU alone. The vectors are the same to a
                cosine of 0.9999.
            exported: the exported file; None: the one beside the checkpoint.

        Raises:
            CheckpointError: there is no checkpoint at `path`, or it can't be read; the exported
                file is missing, broken, or of another checkpoint.
            UsageError: the network lacks one of `heads`; `exported` without an engine.
            RuntimeSetupError: this machine lacks `device`, or the engine.
        """
        if runtime != "torch":
            _check_engine(runtime, device, precision)
            device = "cpu"
        elif exported is not None:
            raise UsageError(
                f"'{exported}' is for the runtime onnx or openvino; torch runs the checkpoint"
            )
        file = find_model(Path(path), Path()).checkpoint
        checkpoint = read_checkpoint(file)
        fingerprint = model_fingerprint(file)
        network, preset = restore_network(checkpoint)
        engine = None
        if runtime != "torch":
            place = exported_path(file, runtime) if exported is None else Path(exported)
            engine = _open_engine(place, runtime, precision, fingerprint, file)
        return cls(
            network,
            preset,
            replace(checkpoint, tensors={}),
            fingerprint=fingerprint,
            device=choose_device(device),
            precision=precision,
            heads=heads,
            flip=flip,
            batch_size=batch_size,
            workers=workers,
            engine=engine,
        )

    @property
    def runtime(self) -> str:
        """What computes: `torch`, or the engine's package and version."""
        return "torch" if self.engine is None else self.engine.version

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Embeddings:
        """The embeddings (N, D), float32, of one image or several, in order.

        An image is one of these; any size, they are resized as in training:

        - a path: `str` or `Path`, of anything that Pillow decodes;
        - a PIL image of any mode (16-bit, palette, transparent, EXIF-turned ...);
        - a NumPy array (H, W, 3) uint8, **RGB** (OpenCV's frames are BGR: `frame[:, :, ::-1]`);
          or a batch (B, H, W, 3);
        - a tensor (3, H, W) or (B, 3, H, W), RGB, uint8 in 0-255 or floating point in 0-1; floats
          are rounded to 8 bits, so both give the same embedding. Not ImageNet-normalised: the
          network does that itself.

        Raises:
            DataError: an image can't be read, or has another layout, type or range; with its
                number, from 0.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray, Tensor)):
            images = [images]
        prepared = (
            tensor for number, image in enumerate(images) for tensor in self._prepare(image, number)
        )
        results = [np.empty((0, self.dimensions), np.float32)]
        batch: list[Tensor] = []
        for tensor in prepared:
            batch.append(tensor)
            if len(batch) == self.batch_size:
                results.append(self.embed_tensor(torch.stack(batch)).numpy())
                batch = []
        if batch:
            results.append(self.embed_tensor(torch.stack(batch)).numpy())
        return np.concatenate(results)

    def embed_paths(
        self,
        paths: Sequence[Path],
        *,
        on_bad_image: OnBadImage = "error",
        progress: Progress = silent,
    ) -> Iterator[tuple[npt.NDArray[np.int64], Embeddings]]:
        """Yield, batch by batch, positions in `paths` (B,) and their embeddings (B, D), in order.

        Memory does not grow with the number of paths. With `on_bad_image="skip"` the positions of
        images that can't be read are left out.

        Raises:
            DataError: an image can't be read, and `on_bad_image` is "error".
        """
        done = 0
        for batch in self.embed_batches(paths):
            if on_bad_image == "error":
                raise_for_bad(paths, batch.bad)
            yield np.array(batch.indices, np.int64), batch.embeddings.numpy()
            done += len(batch.indices) + len(batch.bad)
            progress("embedding", done, len(paths), "images")

    def embed_batches(self, paths: Sequence[Path]) -> Iterator[EmbeddedBatch]:
        """As `embed_paths`, with what could not be read and where the time went."""
        for batch in embed_batches(
            self.embed_tensor,
            paths,
            height_px=self.height_px,
            width_px=self.width_px,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
        ):
            if batch.indices:
                yield batch
            else:
                yield replace(batch, embeddings=torch.empty(0, self.dimensions))

    def embed_tensor(self, images: Tensor) -> Tensor:
        """The embeddings (B, D), float32 on the CPU, of images that are prepared already.

        `images` (B, 3, `height_px`, `width_px`) are RGB, uint8 in 0-255 or floating point in 0-1.
        """
        return embed_tensor(
            self.engine or self.network,
            images,
            device=self.device,
            precision=self.precision,
            normalize_heads=self.normalize_heads,
            heads=tuple(self.heads),
            flip=self.flip,
        )

    def _prepare(self, image: ImageLike, number: int) -> Iterator[Tensor]:
        """The uint8 tensors (3, `height_px`, `width_px`) of image `number` of a call."""
        size = {"height_px": self.height_px, "width_px": self.width_px}
        match image:
            case str() | Path():
                yield read_image(Path(image), **size)
            case Image.Image():
                try:
                    rgb = upright_rgb(image)
                # Of a file that is opened but not read yet: what decoders raise on broken bytes.
                except Exception as error:
                    raise DataError(f"image {number} can't be used: {error}") from None
                yield image_tensor(rgb, **size)
            case np.ndarray():
                for pixels in _check_array(image, number):
                    rgb = Image.fromarray(np.ascontiguousarray(pixels))
                    yield image_tensor(rgb, **size)
            case Tensor():
                for tensor in _check_tensor(image, number):
                    if tensor.shape == (3, self.height_px, self.width_px):
                        yield tensor.cpu()
                    else:
                        rgb = Image.fromarray(tensor.permute(1, 2, 0).contiguous().cpu().numpy())
                        yield image_tensor(rgb, **size)
            case _:
                raise DataError(
                    f"image {number} is a {type(image).__name__}; give a path, a PIL image, "
                    "a NumPy array (H, W, 3) or a tensor (3, H, W)"
                )


def exported_path(checkpoint: Path, kind: ExportFormat) -> Path:
    """Where the exported network of a checkpoint lies, if nobody says otherwise: beside it.

    >>> exported_path(Path("runs/demo/model.safetensors"), "onnx").as_posix()
    'runs/demo/model.onnx'
    """
    return checkpoint.with_suffix(SUFFIXES[kind])


def _check_engine(kind: ExportFormat, device: DeviceName, precision: PrecisionName) -> None:
    """Refuse what this runtime can't do, before a checkpoint is read."""
    if device not in ("auto", "cpu"):
        raise RuntimeSetupError(
            f"runtime '{kind}' computes on the CPU, not on '{device}'; leave --device out, or "
            "take the runtime torch"
        )
    check_engine(kind, precision)


def _open_engine(
    path: Path, kind: ExportFormat, precision: PrecisionName, fingerprint: str, checkpoint: Path
) -> Engine:
    """The engine for `path`, which must be of this very checkpoint."""
    again = f"export it again: airnet export {checkpoint} --format {kind}"
    if not path.is_file():
        raise CheckpointError(
            f"the runtime {kind} runs '{path}', which does not exist; write it with "
            f"`airnet export {checkpoint} --format {kind} -o {path}`"
        )
    engine = open_engine(path, kind=kind, precision=precision, threads=torch.get_num_threads())
    if engine.description.fingerprint != fingerprint:
        raise CheckpointError(
            f"'{path}' was exported from the checkpoint {engine.description.fingerprint[:8]}…, and "
            f"'{checkpoint}' is {fingerprint[:8]}…; {again}"
        )
    return engine


def choose_heads(there: Mapping[str, slice], chosen: Sequence[str] | None) -> dict[str, slice]:
    """The slices of the chosen heads, in the network's order, when only those are kept."""
    if chosen is not None:
        unknown = [name for name in chosen if name not in there]
        if unknown or not chosen:
            raise UsageError(
                f"head {', '.join(unknown) or '(none)'}: this network has {', '.join(there)}; "
                "choose among these"
            )
    heads: dict[str, slice] = {}
    start = 0
    for name, part in there.items():
        if chosen is None or name in chosen:
            heads[name] = slice(start, start + part.stop - part.start)
            start = heads[name].stop
    return heads


def _check_array(pixels: npt.NDArray[np.uint8], number: int) -> npt.NDArray[np.uint8]:
    """The array as a batch (B, H, W, 3)."""
    batch = pixels[None] if pixels.ndim == 3 else pixels
    if batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape[1:]:
        hint = "; a tensor may have the channels first" if 3 in pixels.shape[:-1] else ""
        raise DataError(
            f"image {number} is a NumPy array of the shape {pixels.shape}; it must be "
            f"(height, width, 3) or a batch of these, RGB{hint}"
        )
    if batch.dtype != np.uint8:
        raise DataError(
            f"image {number} is a NumPy array of {pixels.dtype}; it must be uint8 in 0-255 "
            "(floating point in 0-1 may come as a tensor)"
        )
    return batch


def _check_tensor(images: Tensor, number: int) -> Tensor:
    """The tensor as a batch (B, 3, H, W) of uint8."""
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[1] != 3 or 0 in batch.shape[2:]:
        hint = "; a NumPy array may have the channels last" if images.shape[-1:] == (3,) else ""
        raise DataError(
            f"image {number} is a tensor of the shape {tuple(images.shape)}; it must be "
            f"(3, height, width) or (images, 3, height, width), RGB{hint}"
        )
    if batch.dtype == torch.uint8:
        return batch
    if not batch.is_floating_point():
        raise DataError(
            f"image {number} is a tensor of {batch.dtype}; it must be uint8 in 0-255 or floating "
            "point in 0-1"
        )
    if not batch.numel():
        return batch.to(torch.uint8)
    low, high = (float(value) for value in batch.detach().aminmax())
    if not (low >= 0 and high <= 1):  # so that NaN does not pass
        raise DataError(
            f"image {number} has values from {low:g} to {high:g}; floating point must be in 0-1, "
            "not 0-255 and not ImageNet-normalised: the network does that itself"
        )
    return (batch.detach() * 255).round().to(torch.uint8)
