"""Find the best matches of pictures in a gallery on disk, and say what the scores mean.

Queries go through the very model that embedded the gallery, which is found from the gallery's
record; another one is refused. Verdicts come from a threshold: the user's, or that of the model's
calibration (`airnet evaluate --calibrate`). Without either there is none, and a note says why.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from airnet_cli.core.arrays import map_array
from airnet_cli.core.checkpoint import model_fingerprint
from airnet_cli.core.data.sources import list_images
from airnet_cli.core.drawing import MatchState, RankedMatch, RankedRow, draw_ranked_lists
from airnet_cli.core.files import is_file, replacing, write_rows, write_text
from airnet_cli.core.gallery import Gallery, read_gallery
from airnet_cli.core.gallery.folder import open_gallery
from airnet_cli.core.gallery.milvus import Collection, open_collection
from airnet_cli.core.gallery.place import MilvusPlace, gallery_place
from airnet_cli.core.hnsw import HnswIndex
from airnet_cli.core.index import IndexKind, has_index, read_int8_index
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.report import Section, write_report
from airnet_cli.core.retrieval.calibration import (
    Calibration,
    ScoreCalibration,
    calibration_path,
    read_calibration,
)
from airnet_cli.core.retrieval.conditions import Condition, allowed_rows, parse_condition
from airnet_cli.core.retrieval.kernels import is_worthwhile
from airnet_cli.core.retrieval.quantized import QuantizedRows
from airnet_cli.core.retrieval.rerank import Reranking, k_reciprocal_distances
from airnet_cli.core.retrieval.search import search
from airnet_cli.core.runtime import DeviceName
from airnet_cli.errors import CheckpointError, DataError, UsageError
from airnet_cli.workflows.collection import milvus_token
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.runs import CHECKPOINT, Model, find_model

JSON_VERSION = 1

Verdict = Literal["same person", "unknown"]
IndexChoice = Literal["auto", "none", "int8", "hnsw"]

DEFAULT_FAR = 1e-3
"""The false-accept rate where the user names none: one pair of two people in a thousand passes."""

RERANKED = 300
"""How many of a query's nearest rows are re-ranked among themselves."""
RERANKING = Reranking()

MOST_DRAWN = 64
"""More queries on one picture can't be looked at."""
LONGEST_DRAWN = 50
"""Matches of a query on a picture or page."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, slots=True)
class Match:
    """One gallery row that was found."""

    rank: int
    """From 1."""
    row: int | None
    """Of the gallery's matrix and table, from 0; None in Milvus, whose rows have no order."""
    path: Path
    """The image, as seen from the current folder; no file's where it is in object storage."""
    name: str
    """What it is called: its path as text, or its URL."""
    score: float
    """Cosine, -1 to 1."""
    verdict: Verdict | None
    """None where nothing says which scores mean the same person."""
    distance: float | None
    """What the rank follows after re-ranking, 0 to 1; None without."""
    columns: dict[str, str]
    """The row's cells in the gallery's table, without the path."""


@dataclass(frozen=True, slots=True)
class QueryMatches:
    """A query and what was found for it, best first."""

    query: str
    """The image's path, or `features.npy[3]` for a row of features whose image is not known."""
    image: Path | None
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class Decision:
    """From which score on two pictures are said to show one person."""

    threshold: float
    far: float | None
    """The false-accept rate that was chosen; None for a threshold of the user's."""
    calibration: Path | None
    """Where the threshold comes from; None for the user's."""
    data: str | None
    """The data set that it was measured on; None for the user's."""


@dataclass(frozen=True)
class Matching:
    """All matches of a call, and how they were found."""

    gallery: Path | MilvusPlace
    rows: int
    """Rows of the gallery."""
    rows_searched: int
    """Those that fulfil the conditions."""
    checkpoint: Path | None
    """The model; None where features were given and the model is not at hand."""
    fingerprint: str
    heads: tuple[str, ...]
    """What was compared."""
    where: tuple[str, ...]
    reranked: bool
    index: IndexKind | None
    """What was searched before the floats; None: nothing but these."""
    kernel: str | None
    """What multiplied the int8 rows; None without them."""
    decision: Decision | None
    notes: tuple[str, ...]
    """What the user should know, a line each; why there is no verdict, for one."""
    queries: tuple[QueryMatches, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `match --json` (docs/how-to/match.md)."""
        decision = self.decision
        return {
            "version": JSON_VERSION,
            "gallery": str(self.gallery),
            "rows": self.rows,
            "rows_searched": self.rows_searched,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "fingerprint": self.fingerprint,
            "heads": list(self.heads),
            "where": list(self.where),
            "reranked": self.reranked,
            "index": self.index,
            "kernel": self.kernel,
            "decision": None
            if decision is None
            else {
                "threshold": decision.threshold,
                "far": decision.far,
                "calibration": None if decision.calibration is None else str(decision.calibration),
                "data": decision.data,
            },
            "notes": list(self.notes),
            "queries": [
                {"query": query.query, "matches": [_match_dict(match) for match in query.matches]}
                for query in self.queries
            ],
        }


def match(
    *,
    queries: Sequence[Path],
    gallery: Path | str,
    k: int,
    threshold: float | None,
    far: float | None,
    heads: Sequence[str] | None,
    where: Sequence[str],
    rerank: bool,
    index: IndexChoice = "auto",
    allow_partial: bool = False,
    checkpoint: Path | None,
    runs_root: Path,
    table: Path | None,
    picture: Path | None,
    page: Path | None,
    device: DeviceName,
    batch_size: int,
    workers: int,
    progress: Progress = silent,
) -> Matching:
    """Find the `k` best matches of each query in `gallery`.

    Args:
        queries: images, folders, lists or tables of images, `.npy` features; at least one.
        gallery: what `airnet embed` wrote: a .npy file, a folder of parts, or
            milvus://HOST:PORT/COLLECTION.
        k: matches of each query, from 1.
        threshold: the score from which on it is the same person; None: the calibration's.
        far: the false-accept rate whose calibrated threshold is used; None: `DEFAULT_FAR`.
        heads: compare these heads of the gallery alone; None: all.
        where: conditions on the gallery's table, all of which a row must fulfil.
        rerank: order each query's nearest `RERANKED` rows by k-reciprocal neighbours.
        index: an index of the gallery to search with; "auto": int8, where there is one.
        allow_partial: search a folder although parts of its job are missing.
        checkpoint: the run or checkpoint that embedded the gallery; None: found by the record.
        runs_root: where it is looked for.
        table: write the matches here as CSV.
        picture: draw the ranked lists here.
        page: write an HTML page with the lists here.
        device: where queries are embedded.
        batch_size: images that go through the network together.
        workers: processes that read images.
        progress: told about embedding and searching.

    Raises:
        UsageError: options that contradict each other, a head or column that the gallery lacks.
        DataError: a query, the gallery or its index is missing or broken, or no row fulfils the
            conditions.
        CheckpointError: the gallery's model is not to be found, or is another than the one given;
            a calibration was asked for that there is not.
    """
    if threshold is not None and far is not None:
        raise UsageError("--threshold and --far both choose a threshold: give one of them")
    if threshold is not None and not -1 <= threshold <= 1:
        raise UsageError(f"threshold {threshold:g} is no cosine; give a number from -1 to 1")
    conditions = [parse_condition(text) for text in where]
    place = gallery_place(gallery)
    collection = None
    allowed = None
    if isinstance(place, MilvusPlace):
        collection = open_collection(place, token=milvus_token())
        opened = collection.gallery
        parts = _choose_parts(opened, heads)
        rows, rows_searched = _count(collection, conditions, parts)
    else:
        opened = open_gallery(place, allow_partial=allow_partial)
        parts = _choose_parts(opened, heads)
        allowed = allowed_rows(opened.columns, conditions) if conditions else None
        rows = len(opened.embeddings)
        if not rows:
            raise DataError(f"gallery '{place}' is empty; `airnet embed --append` fills it")
        rows_searched = rows if allowed is None else int(allowed.sum())
    if rerank and rows_searched <= RERANKING.k1:
        raise UsageError(
            f"--rerank looks at {RERANKING.k1} neighbours of each picture, and {rows_searched} "
            "rows are searched; leave it out"
        )
    given = _Queries(queries)
    finder, unused = _open_index(
        opened,
        index,
        parts=parts,
        is_free=not (conditions or rerank),
        num_queries=len(given.names),
    )
    _check_drawing(given, k, picture=picture, page=page)

    notes = [*given.check_features(opened), *([unused] if unused else [])]
    model, why_not = _find_model(opened, checkpoint, runs_root)
    if given.images and model is None:
        raise CheckpointError(why_not)
    embeddings = given.embed(
        opened, model, device=device, batch_size=batch_size, workers=workers, progress=progress
    )
    if threshold is None:
        decision, reason = _calibrated(opened, tuple(parts), model, far)
        notes += [reason] if reason else []
    else:
        decision = Decision(threshold, None, None, None)

    kernel: str | None = None
    groups: Iterable[tuple[slice, Gallery]] = [(slice(None), opened)]
    if collection is not None:
        nearest = max(k, RERANKED) if rerank else k
        groups = collection.nearest(embeddings, k=nearest, conditions=conditions)
    lists: list[tuple[Match, ...]] = []
    for part, near in groups:
        found = _find(
            embeddings[part],
            near,
            tuple(parts.values()),
            allowed,
            finder,
            k=k,
            rerank=rerank,
            progress=progress,
        )
        kernel = found.kernel
        if kernel in ("bfloat16", "float32"):
            notes.append(
                f"int8 rows are multiplied in {kernel}, the quickest that this machine has; "
                "pip install 'airnet[ann]' brings a kernel that may be quicker"
            )
        if found.in_floats:
            notes.append(
                f"int8 could not tell enough rows apart for {found.in_floats} of {len(found.rows)} "
                "queries, which were searched in floats"
            )
        lists += [_matches(near, found, index, decision) for index in range(len(found.rows))]
    matching = Matching(
        gallery=place,
        rows=rows,
        rows_searched=rows_searched,
        checkpoint=None if model is None else model.checkpoint,
        fingerprint=opened.fingerprint,
        heads=tuple(parts),
        where=tuple(str(condition) for condition in conditions),
        reranked=rerank,
        index=_kind(finder),
        kernel=kernel,
        decision=decision,
        notes=tuple(notes),
        queries=tuple(
            QueryMatches(query=name, image=image, matches=matches)
            for (name, image), matches in zip(given.names, lists, strict=True)
        ),
    )
    _write_outputs(matching, opened, table=table, picture=picture, page=page)
    return matching


def _count(
    collection: Collection, conditions: Sequence[Condition], parts: dict[str, slice]
) -> tuple[int, int]:
    """How many rows there are, and how many fulfil the conditions.

    Raises:
        UsageError: not all heads are to be compared.
        DataError: there is no such row.
    """
    if len(parts) < len(collection.record["heads"]):
        raise UsageError(
            f"--heads: the index of '{collection.place}' compares whole embeddings; embed these "
            "heads alone (--heads) into a collection of their own"
        )
    rows = collection.count()
    searched = collection.count(conditions) if conditions else rows
    if not searched:
        told = f"no row of '{collection.place}' fulfils {' and '.join(map(str, conditions))}"
        raise DataError(
            f"{told}; its columns are {', '.join(('path', *collection.columns))}"
            if rows
            else f"collection '{collection.place}' is empty; `airnet embed` fills it"
        )
    return rows, searched


def _open_index(
    gallery: Gallery,
    index: IndexChoice,
    *,
    parts: dict[str, slice],
    is_free: bool,
    num_queries: int,
) -> tuple[QuantizedRows | HnswIndex | None, str]:
    """The index that is to be used, whole and of this gallery; or None, and why one is not used.

    Raises:
        UsageError: it can't do what is asked for.
        DataError: it is missing, broken, or of another gallery.
    """
    if not isinstance(gallery.path, Path) or gallery.path.is_dir():
        if index in ("int8", "hnsw"):
            raise UsageError(
                f"--index {index} is for galleries in one file, and '{gallery.path}' is another "
                "kind; leave it out"
            )
        return None, ""
    if index == "hnsw":
        if not is_free or len(parts) < len(gallery.heads):
            raise UsageError(
                "--index hnsw finds rows by whole embeddings in the whole gallery; leave out "
                "--where, --rerank and --heads, or use --index int8, which takes them all"
            )
        return HnswIndex(gallery), ""
    if index == "auto" and has_index(gallery, "int8"):
        if is_worthwhile(gallery.embeddings.shape[1], num_queries):
            return read_int8_index(gallery), ""
        return None, (
            f"{num_queries:,} queries are searched in floats, which takes no longer than int8 on "
            "this machine; --index int8 insists"
        )
    return (read_int8_index(gallery) if index == "int8" else None), ""


def _kind(finder: QuantizedRows | HnswIndex | None) -> IndexKind | None:
    if finder is None:
        return None
    return "hnsw" if isinstance(finder, HnswIndex) else "int8"


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What was found for Q queries, best first."""

    rows: npt.NDArray[np.int64]
    """(Q, k)"""
    scores: npt.NDArray[np.float32]
    """(Q, k)"""
    distances: npt.NDArray[np.float64] | None
    """(Q, k) after re-ranking."""
    kernel: str | None
    """What multiplied int8 rows, if there were some."""
    in_floats: int
    """Queries that int8 could not decide."""


def _find(
    queries: npt.NDArray[np.float32],
    gallery: Gallery,
    parts: Sequence[slice],
    allowed: npt.NDArray[np.bool_] | None,
    finder: QuantizedRows | HnswIndex | None,
    *,
    k: int,
    rerank: bool,
    progress: Progress,
) -> _Found:
    if isinstance(finder, HnswIndex):
        near = finder.search(queries, k=k)
        return _Found(near.rows, near.scores, None, None, 0)
    found = search(
        queries=queries,
        gallery_embeddings=gallery.embeddings,
        k=max(k, RERANKED) if rerank else k,
        allowed=allowed,
        parts=parts,
        quantized=finder,
        progress=progress,
    )
    if not rerank:
        return _Found(found.rows, found.scores, None, found.kernel, found.in_floats)
    columns = np.concatenate([np.arange(queries.shape[1])[part] for part in parts])
    distances = np.empty(found.rows.shape)
    for index, near in enumerate(found.rows):
        distances[index] = k_reciprocal_distances(
            # Few rows: in float64, where equal rows are equally near.
            queries=queries[index : index + 1, columns].astype(np.float64),
            gallery=gallery.embeddings[near][:, columns].astype(np.float64),
            reranking=RERANKING,
        )[0]
        progress("re-ranking", index + 1, len(distances), "queries")
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]  # ties: the higher cosine first
    query = np.arange(len(queries))[:, None]
    return _Found(
        found.rows[query, order],
        found.scores[query, order],
        distances[query, order],
        found.kernel,
        found.in_floats,
    )


def _matches(
    gallery: Gallery, found: _Found, query: int, decision: Decision | None
) -> tuple[Match, ...]:
    known = [name for name in gallery.columns if name != "path"]
    matches = []
    for place, row in enumerate(found.rows[query].tolist()):
        score = float(found.scores[query, place])
        verdict: Verdict | None = None
        if decision is not None:
            verdict = "same person" if score >= decision.threshold else "unknown"
        matches.append(
            Match(
                rank=place + 1,
                row=row if isinstance(gallery.path, Path) else None,
                path=gallery.image_path(row),
                name=gallery.image_name(row),
                score=score,
                verdict=verdict,
                distance=None if found.distances is None else float(found.distances[query, place]),
                columns={name: gallery.columns[name][row] for name in known},
            )
        )
    return tuple(matches)


def _match_dict(match: Match) -> dict[str, Any]:
    described: dict[str, Any] = {
        "rank": match.rank,
        "row": match.row,
        "path": match.name,
        "score": match.score,
        "verdict": match.verdict,
        "columns": match.columns,
    }
    return described if match.distance is None else {**described, "distance": match.distance}


def _choose_parts(gallery: Gallery, heads: Sequence[str] | None) -> dict[str, slice]:
    """The columns of the heads to compare, in the gallery's order."""
    unknown = [name for name in heads or () if name not in gallery.heads]
    if unknown or (heads is not None and not heads):
        raise UsageError(
            f"head {', '.join(unknown) or '(none)'}: gallery '{gallery.path}' has "
            f"{', '.join(gallery.heads)}; choose among these"
        )
    return {name: part for name, part in gallery.heads.items() if heads is None or name in heads}


class _Queries:
    """Images and rows of feature files, in the order in which they were named."""

    def __init__(self, inputs: Sequence[Path]) -> None:
        """Look the inputs up; nothing is embedded yet.

        Raises:
            DataError: an input is missing, broken or empty.
        """
        self.names: list[tuple[str, Path | None]] = []
        """What each query is called, and its image where that is known."""
        self.images: list[Path] = []
        self.features: list[tuple[Path, Gallery | None, npt.NDArray[np.floating[Any]]]] = []
        """Path, the record beside it if there is one, and the matrix."""
        self._places: list[tuple[Literal["images", "features"], int]] = []
        """For each input: how many queries, of which kind."""
        for path in inputs:
            if path.suffix == ".npy":
                self._add_features(path)
            else:
                found = list_images([path], must_exist=True).paths
                self.images += found
                self.names += [(str(image), image) for image in found]
                self._places.append(("images", len(found)))

    def _add_features(self, path: Path) -> None:
        if path.with_suffix(".json").is_file():
            record = read_gallery(path)
            matrix = np.asarray(record.embeddings)  # of one file: still on disk
            images = [record.image_path(row) for row in range(len(matrix))]
            self.names += [(str(image), image) for image in images]
        else:
            record, matrix = None, _read_features(path)
            self.names += [(f"{path}[{row}]", None) for row in range(len(matrix))]
        self.features.append((path, record, matrix))
        self._places.append(("features", len(matrix)))

    def check_features(self, gallery: Gallery) -> list[str]:
        """Refuse features that can't be compared with `gallery`; what the user should know.

        Raises:
            CheckpointError: another model made them.
            UsageError: they have other heads, or were embedded in another way.
            DataError: they have another width.
        """
        notes = []
        for path, record, matrix in self.features:
            if record is None:
                if matrix.shape[1] != gallery.embeddings.shape[1]:
                    raise DataError(
                        f"features '{path}' have {matrix.shape[1]} columns and gallery "
                        f"'{gallery.path}' {gallery.embeddings.shape[1]}; compute both with the "
                        "same model"
                    )
                notes.append(
                    f"'{path}' has no .json beside it that names its model; that it is the "
                    "gallery's is taken on trust"
                )
                continue
            if record.fingerprint != gallery.fingerprint:
                raise CheckpointError(
                    f"queries '{path}' were embedded by {_model_words(record)} and gallery "
                    f"'{gallery.path}' by {_model_words(gallery)}: their embeddings can't be "
                    "compared; embed both with the same model"
                )
            settings = ("heads", "flip", "normalize_heads")
            different = [s for s in settings if getattr(record, s) != getattr(gallery, s)]
            if different:
                raise UsageError(
                    f"queries '{path}' and gallery '{gallery.path}' differ in "
                    f"{' and '.join(different)}; embed the queries as the gallery was"
                )
        return notes

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
        """The queries' embeddings (Q, D), made as the gallery's were."""
        embedded = np.empty((len(self.images), gallery.embeddings.shape[1]), np.float32)
        if self.images:
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
            for rows, values in embedder.embed_paths(self.images, progress=progress):
                embedded[rows] = values
        pieces: list[npt.NDArray[np.floating[Any]]] = []
        image, file = 0, 0
        for kind, count in self._places:
            if kind == "images":
                pieces.append(embedded[image : image + count])
                image += count
            else:
                pieces.append(self.features[file][2])
                file += 1
        with np.errstate(over="ignore"):  # infinity has no direction: the search refuses it
            return np.concatenate(pieces).astype(np.float32, copy=False)


def _read_features(path: Path) -> npt.NDArray[np.floating[Any]]:
    """A plain matrix (Q, D) of features, or one vector (D,), without a record."""
    try:
        matrix = map_array(path, mode="r")
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


def _find_model(
    gallery: Gallery, checkpoint: Path | None, runs_root: Path
) -> tuple[Model | None, str]:
    """The model that embedded the gallery; or None and why it is not to be found.

    Raises:
        CheckpointError: `checkpoint` is not there, or is another model.
    """
    if checkpoint is not None:
        model = find_model(checkpoint, runs_root)
        fingerprint = model_fingerprint(model.checkpoint)
        if fingerprint != gallery.fingerprint:
            raise CheckpointError(
                f"gallery '{gallery.path}' was embedded by {_model_words(gallery)}, and "
                f"'{model.checkpoint}' is another model ({fingerprint[:12]}): their embeddings "
                "can't be compared; give the gallery's model, or embed the gallery again with "
                "this one"
            )
        return model, ""
    recorded = Path(str(gallery.record.get("checkpoint", "")))
    others = sorted(runs_root.glob(f"*/{CHECKPOINT}"), reverse=True)
    replaced = ""
    for file in [recorded, *others]:
        if is_file(file):
            fingerprint = model_fingerprint(file)
            if fingerprint == gallery.fingerprint:
                return find_model(file, runs_root), ""
            if file == recorded:
                replaced = f" (what is at its place now is another model, {fingerprint[:12]})"
    return None, (
        f"gallery '{gallery.path}' was embedded by {_model_words(gallery)}, which is neither at "
        f"its place{replaced} nor under '{runs_root}'; give it as --checkpoint, or embed the "
        "gallery again"
    )


def _model_words(gallery: Gallery) -> str:
    return f"'{gallery.record.get('checkpoint', 'a model')}' ({gallery.fingerprint[:12]})"


def _calibrated(
    gallery: Gallery, heads: Sequence[str], model: Model | None, far: float | None
) -> tuple[Decision | None, str]:
    """The calibrated threshold; or None and why there is none, where `far` was not asked for.

    Raises:
        CheckpointError: `far` was asked for and can't be had, or the calibration can't be read.
    """
    found, reason = _find_threshold(gallery, heads, model, DEFAULT_FAR if far is None else far)
    if found is None and far is not None:
        raise CheckpointError(f"--far {far:g}: {reason}")
    return found, "" if found is not None else f"no verdict: {reason}"


def _find_threshold(
    gallery: Gallery, heads: Sequence[str], model: Model | None, far: float
) -> tuple[Decision | None, str]:
    if model is None:
        return None, (
            "the gallery's model, beside which its calibration would be, was not found; give it "
            "as --checkpoint, or give --threshold"
        )
    path = calibration_path(model.checkpoint)
    calibration = read_calibration(path)
    make = f"`airnet evaluate {model.run or model.checkpoint} --calibrate`"
    if calibration is None:
        return None, (
            "the model has no calibration, which says what a score means; "
            f"{make} measures it, or give --threshold"
        )
    if calibration.fingerprint != gallery.fingerprint:
        return None, f"calibration '{path}' is of another model; measure it again with {make}"
    for setting in ("flip", "normalize_heads"):
        if getattr(calibration, setting) != getattr(gallery, setting):
            return None, (
                f"calibration '{path}' and the gallery differ in {setting}, so its thresholds do "
                "not fit; give --threshold"
            )
    meaning = _meaning(calibration, heads)
    if meaning is None:
        return None, (
            f"heads {', '.join(heads)} together are not calibrated, only each alone and all of "
            f"{', '.join(calibration.heads)}; give --threshold"
        )
    point = meaning.at(far)
    if point is None:
        there = ", ".join(f"{point.far:g}" for point in meaning.points)
        return None, (
            f"calibration '{path}' has no false-accept rate {far:g}; it was measured on "
            f"{meaning.different_person_pairs:,} pairs of two people and has {there or 'none'}"
        )
    return Decision(point.threshold, far, path, calibration.data), ""


def _meaning(calibration: Calibration, heads: Sequence[str]) -> ScoreCalibration | None:
    if list(heads) == list(calibration.heads):
        return calibration.whole
    return calibration.heads.get(heads[0]) if len(heads) == 1 else None


def _check_drawing(queries: _Queries, k: int, *, picture: Path | None, page: Path | None) -> None:
    """Refuse, before any work, what can't be drawn."""
    if picture is not None and picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError(
            f"'{picture}' is no picture's name; end it in {', '.join(PICTURE_SUFFIXES)}"
        )
    if picture is None and page is None:
        return
    for name, image in queries.names:
        if image is None:
            raise UsageError(
                f"query {name} has no image to draw; leave --picture and --html out, or give "
                "features that `airnet embed` wrote"
            )
    if picture is not None and len(queries.names) > MOST_DRAWN:
        raise UsageError(
            f"{len(queries.names):,} queries are too many for one picture (at most {MOST_DRAWN}); "
            "use --html, or fewer queries"
        )
    if k > LONGEST_DRAWN:
        raise UsageError(
            f"-k {k} is too long for a picture or page (at most {LONGEST_DRAWN}); use --csv or "
            "--json"
        )


def _write_outputs(
    matching: Matching,
    gallery: Gallery,
    *,
    table: Path | None,
    picture: Path | None,
    page: Path | None,
) -> None:
    if table is not None:
        write_text(table, _table(matching, gallery))
    if picture is None and page is None:
        return
    lists = [_ranked_row(query) for query in matching.queries]
    if picture is not None:
        sheet = draw_ranked_lists(lists, title=f"Matches in {gallery.path.name}")
        _save(sheet, picture)
    if page is not None:
        section = Section("Matches", _in_words(matching), tuple(lists))
        title = f"Matches in {gallery.path.name}"
        write_report(page, title=title, sections=[section], text=f"Gallery: {gallery.path}")


def _save(sheet: Image.Image, path: Path) -> None:
    kind = Image.registered_extensions()[path.suffix.lower()]
    with replacing(path) as temporary:
        sheet.save(temporary, kind)


def _table(matching: Matching, gallery: Gallery) -> str:
    known = [name for name in gallery.columns if name != "path"]
    text = io.StringIO(newline="")
    distance = ["distance"] if matching.reranked else []
    write_rows(text, [["query", "rank", "row", "path", "score", "verdict", *distance, *known]])
    for query in matching.queries:
        for match in query.matches:
            row = "" if match.row is None else match.row
            cells = [query.query, match.rank, row, match.name, match.score]
            cells += [match.verdict or "", *([match.distance] if matching.reranked else [])]
            write_rows(text, [[*cells, *(match.columns[name] for name in known)]])
    return text.getvalue()


def _ranked_row(query: QueryMatches) -> RankedRow:
    assert query.image is not None, "checked before the work"
    return RankedRow(
        label=query.query,
        query=query.image,
        matches=tuple(
            RankedMatch(match.path, match.score, _state(match.verdict), _caption(match))
            for match in query.matches
        ),
    )


def _state(verdict: Verdict | None) -> MatchState:
    if verdict is None:
        return "unjudged"
    return "same" if verdict == "same person" else "unknown"


def _caption(match: Match) -> str:
    words = []
    for column, word in (("person_id", "person "), ("camera_id", "c")):
        if match.columns.get(column):
            words.append(word + match.columns[column])
    return ", ".join(words) or match.path.name


def _in_words(matching: Matching) -> str:
    """How the lists came about, for the reader of a page."""
    words = f"{matching.rows_searched:,} of {matching.rows:,} pictures were searched"
    if matching.where:
        words += f" ({', '.join(matching.where)})"
    words += f" by the cosine of {', '.join(matching.heads)}"
    words += ", re-ranked by k-reciprocal neighbours. " if matching.reranked else ". "
    decision = matching.decision
    if decision is None:
        return words + "Nothing says which scores mean the same person: there is no verdict."
    words += f"From {decision.threshold:.4f} on it is called the same person"
    if decision.data is None:
        return words + "."
    return (
        f"{words}: on {decision.data}, {decision.far:g} of the pairs of two people scored so high."
    )
