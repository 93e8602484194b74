"""Queries of a search: images, and rows of feature files, in the order in which they were named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.data.sources import list_images
from airnet_cli.core.files import map_array
from airnet_cli.core.gallery import Gallery, read_gallery
from airnet_cli.core.progress import Progress
from airnet_cli.core.runtime import DeviceName
from airnet_cli.errors import CheckpointError, DataError, UsageError
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.runs import Model

Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _Images:
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Features:
    path: Path
    record: Gallery | None
    """What `airnet embed` wrote about them; None for features of other tools."""
    matrix: Matrix


class Queries:
    """Images and features, looked up but not embedded."""

    def __init__(self, inputs: Sequence[Path]) -> None:
        """Look up the inputs: images, folders, lists, tables, `.npy` features.

        Raises:
            DataError: an input is missing, broken or empty.
        """
        self._parts: list[_Images | _Features] = []
        self.names: list[tuple[str, Path | None]] = []
        """The name of each query, and its image where that is known."""
        for path in inputs:
            if path.suffix == ".npy":
                self._add_features(path)
            else:
                paths = list_images([path], must_exist=True).paths
                self._parts.append(_Images(paths))
                self.names += [(str(image), image) for image in paths]

    @property
    def images(self) -> list[Path]:
        """The queries that have to be embedded."""
        parts = [part.paths for part in self._parts if isinstance(part, _Images)]
        return [path for paths in parts for path in paths]

    def _add_features(self, path: Path) -> None:
        if path.with_suffix(".json").is_file():
            record = read_gallery(path)
            matrix: Matrix = np.asarray(record.embeddings)
            images = [record.image_path(row) for row in range(len(matrix))]
            self.names += [(str(image), image) for image in images]
        else:
            record, matrix = None, _read_features(path)
            self.names += [(f"{path}[{row}]", None) for row in range(len(matrix))]
        self._parts.append(_Features(path, record, matrix))

    def check(self, gallery: Gallery) -> list[str]:
        """Refuse features that can't be compared with `gallery`; return notes for the user.

        Raises:
            CheckpointError: another model made them.
            UsageError: they have other heads, or were embedded in another way.
            DataError: they have another width.
        """
        features = [part for part in self._parts if isinstance(part, _Features)]
        return [note for each in features for note in _check_features(each, gallery)]

    def embed(
        self,
        gallery: Gallery,
        model: Model | None,
        *,
        device: DeviceName,
        batch_size: int,
        workers: int,
        progress: Progress,
    ) -> npt.NDArray[np.float32]:
        """The embeddings (Q, D) of all queries, made in the same way as the gallery's."""
        images = self.images
        embedded = np.empty((len(images), gallery.embeddings.shape[1]), np.float32)
        if images:
            assert model is not None, "checked by the caller"
            embedder = Embedder.load(
                model.checkpoint,
                device=device,
                heads=list(gallery.heads),
                flip=gallery.flip,
                batch_size=batch_size,
                workers=workers,
            )
            embedder.normalize_heads = gallery.normalize_heads
            for rows, values in embedder.embed_paths(images, progress=progress):
                embedded[rows] = values
        pieces: list[Matrix] = []
        done = 0
        for part in self._parts:
            if isinstance(part, _Features):
                pieces.append(part.matrix)
            else:
                pieces.append(embedded[done : done + len(part.paths)])
                done += len(part.paths)
        with np.errstate(over="ignore"):  # infinity has no direction: the search refuses it
            return np.concatenate(pieces).astype(np.float32, copy=False)


def _check_features(features: _Features, gallery: Gallery) -> list[str]:
    record, path = features.record, features.path
    if record is None:
        if features.matrix.shape[1] != gallery.embeddings.shape[1]:
            raise DataError(
                f"features '{path}' have {features.matrix.shape[1]} columns and gallery "
                f"'{gallery.path}' {gallery.embeddings.shape[1]}; compute both with the "
                "same model"
            )
        return [
            f"'{path}' has no .json next to it that names its model: whether it is the "
            "gallery's model can't be checked"
        ]
    if record.fingerprint != gallery.fingerprint:
        raise CheckpointError(
            f"queries '{path}' were embedded by {model_words(record)} and gallery "
            f"'{gallery.path}' by {model_words(gallery)}: their embeddings can't be "
            "compared; embed both with the same model"
        )
    settings = ("heads", "flip", "normalize_heads")
    different = [s for s in settings if getattr(record, s) != getattr(gallery, s)]
    if different:
        raise UsageError(
            f"queries '{path}' and gallery '{gallery.path}' differ in "
            f"{' and '.join(different)}; embed the queries as the gallery was"
        )
    return []


def _read_features(path: Path) -> Matrix:
    """A plain matrix (Q, D) of features, or one vector (D,), without a record."""
    try:
        matrix = map_array(path)
    except FileNotFoundError:
        raise DataError(f"there is no file '{path}'; give images or .npy features") from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"'{path}' can't be read as a NumPy array ({' '.join(str(error).split())}); write it "
            "with numpy.save(path, matrix), a matrix of floats"
        ) from None
    if matrix.ndim == 1:
        matrix = matrix[None]
    is_float = matrix.dtype in (np.float16, np.float32, np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape or not is_float:
        raise DataError(
            f"'{path}' holds {matrix.dtype} of the shape {matrix.shape}; it must be a matrix of "
            "floats with a row for each query"
        )
    return matrix


def model_words(gallery: Gallery) -> str:
    """The model that embedded a gallery, for messages."""
    return f"'{gallery.record.get('checkpoint', 'a model')}' ({gallery.fingerprint[:12]})"
