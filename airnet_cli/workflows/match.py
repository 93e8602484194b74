"""Find the best matches of images in a gallery, and say what the scores mean.

Queries go through the model that embedded the gallery; another one is refused. Verdicts come from a
threshold (`verdicts.py`); without one, a note says why.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from airnet_cli.core.checkpoint import model_fingerprint
from airnet_cli.core.drawing import PICTURE_SUFFIXES, draw_ranked_lists, save_picture
from airnet_cli.core.files import is_file, write_rows, write_text
from airnet_cli.core.gallery import Gallery, open_gallery
from airnet_cli.core.gallery.milvus import Collection, open_collection
from airnet_cli.core.gallery.place import MilvusPlace, gallery_place
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.ranked import MatchState, RankedList, RankedMatch
from airnet_cli.core.report import Section, write_report
from airnet_cli.core.retrieval.conditions import Condition, allowed_rows, parse_condition
from airnet_cli.core.retrieval.rerank import Reranking, k_reciprocal_distances
from airnet_cli.core.retrieval.search import search
from airnet_cli.core.runtime import DeviceName
from airnet_cli.errors import CheckpointError, DataError, UsageError
from airnet_cli.workflows.collection import milvus_token
from airnet_cli.workflows.queries import Queries, model_words
from airnet_cli.workflows.runs import Model, find_model
from airnet_cli.workflows.verdicts import Decision, check_threshold, decide

JSON_VERSION = 1

RERANKED = 300
"""How many of a query's nearest rows are re-ranked among themselves."""
RERANKING = Reranking()

MOST_DRAWN = 64
"""Queries on one picture; more can't be read."""
LONGEST_DRAWN = 50
"""Matches of a query on a picture or page."""


@dataclass(frozen=True, kw_only=True)
class MatchOptions:
    """What to search, and how."""

    queries: Sequence[Path]
    """Images, folders, lists or tables of images, `.npy` features; at least one."""
    gallery: Path | str
    """A gallery file, a folder that can grow, or milvus://HOST:PORT/COLLECTION."""
    runs_root: Path
    k: int = 10
    """Matches of each query, from 1."""
    threshold: float | None = None
    """The score from which on it is the same person; None: the calibration's."""
    far: float | None = None
    """The false-accept rate of the calibrated threshold; None: `verdicts.DEFAULT_FAR`."""
    heads: Sequence[str] | None = None
    """Compare only these heads of the gallery; None: all."""
    where: Sequence[str] = ()
    """Conditions on the gallery's table, all of which a row must fulfil."""
    rerank: bool = False
    """Order each query's nearest `RERANKED` rows by k-reciprocal neighbors."""
    allow_partial: bool = False
    """Search a folder although parts of its job are missing."""
    checkpoint: Path | None = None
    """The run or checkpoint that embedded the gallery; None: the recorded one."""
    table: Path | None = None
    """Write the matches here as CSV."""
    picture: Path | None = None
    """Draw the ranked lists here."""
    page: Path | None = None
    """Write an HTML page with the lists here."""
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0


@dataclass(frozen=True)
class Matching:
    """All matches of a call, and how they were found."""

    gallery: Path | MilvusPlace
    columns: tuple[str, ...]
    """Of the gallery's table, without the path."""
    rows: int
    """Rows of the gallery."""
    rows_searched: int
    """Rows that fulfil the conditions."""
    checkpoint: Path | None
    """The model; None where features were given and the model was not found."""
    fingerprint: str
    heads: tuple[str, ...]
    """The heads that were compared."""
    where: tuple[str, ...]
    reranked: bool
    decision: Decision | None
    notes: tuple[str, ...]
    """What the user should know, one line each."""
    queries: tuple[RankedList, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `match --json` (docs/how-to/match.md)."""
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
            "decision": None if self.decision is None else self.decision.to_dict(),
            "notes": list(self.notes),
            "queries": [
                {"query": query.query, "matches": [_match_dict(match) for match in query.matches]}
                for query in self.queries
            ],
        }


def match(options: MatchOptions, *, progress: Progress = silent) -> Matching:
    """Find the best matches of each query in the gallery.

    Raises:
        UsageError: options that contradict each other, a head or column that the gallery lacks.
        DataError: a query or the gallery is missing or broken, or no row fulfils the conditions.
        CheckpointError: the gallery's model was not found, or is another than the one given; a
            false-accept rate without a calibration.
    """
    check_threshold(options.threshold, options.far)
    conditions = [parse_condition(text) for text in options.where]
    target = _Target.open(options, conditions)
    if options.rerank and target.rows_searched <= RERANKING.k1:
        raise UsageError(
            f"--rerank looks at {RERANKING.k1} neighbours of each image, and "
            f"{target.rows_searched} rows are searched; leave it out"
        )
    queries = Queries(options.queries)
    _check_drawing(queries, options)
    gallery = target.gallery
    notes = queries.check(gallery)
    model, why_not = _find_model(gallery, options.checkpoint, options.runs_root)
    if queries.images and model is None:
        raise CheckpointError(why_not)
    embeddings = queries.embed(
        gallery,
        model,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
        progress=progress,
    )
    decision, reason = decide(
        gallery, tuple(target.parts), model, threshold=options.threshold, far=options.far
    )
    lists = target.find(embeddings, queries.names, options, decision, progress)
    matching = Matching(
        gallery=target.place,
        columns=tuple(name for name in gallery.columns if name != "path"),
        rows=target.rows,
        rows_searched=target.rows_searched,
        checkpoint=None if model is None else model.checkpoint,
        fingerprint=gallery.fingerprint,
        heads=tuple(target.parts),
        where=tuple(str(condition) for condition in conditions),
        reranked=options.rerank,
        decision=decision,
        notes=tuple([*notes, reason] if reason else notes),
        queries=tuple(lists),
    )
    _write_outputs(matching, options)
    return matching


@dataclass(frozen=True, eq=False)
class _Target:
    """The rows of a gallery that are searched: on disk, or in Milvus."""

    place: Path | MilvusPlace
    gallery: Gallery
    collection: Collection | None
    """Milvus searches; None: we do."""
    parts: dict[str, slice]
    """The columns of the heads to compare."""
    conditions: Sequence[Condition]
    allowed: npt.NDArray[np.bool_] | None
    """(N,) rows on disk that fulfil the conditions; None: all."""
    rows: int
    rows_searched: int

    @classmethod
    def open(cls, options: MatchOptions, conditions: Sequence[Condition]) -> "_Target":
        place = gallery_place(options.gallery)
        if isinstance(place, MilvusPlace):
            collection = open_collection(place, token=milvus_token())
            gallery = collection.gallery
            parts = _choose_parts(gallery, options.heads)
            counts = _count(collection, conditions, parts)
            return cls(place, gallery, collection, parts, conditions, None, *counts)
        gallery = open_gallery(place, allow_partial=options.allow_partial)
        parts = _choose_parts(gallery, options.heads)
        allowed = allowed_rows(gallery.columns, conditions) if conditions else None
        rows = len(gallery.embeddings)
        if not rows:
            raise DataError(f"gallery '{place}' is empty; `airnet embed --append` fills it")
        searched = rows if allowed is None else int(allowed.sum())
        return cls(place, gallery, None, parts, conditions, allowed, rows, searched)

    def find(
        self,
        embeddings: npt.NDArray[np.float32],
        names: Sequence[tuple[str, Path | None]],
        options: MatchOptions,
        decision: Decision | None,
        progress: Progress,
    ) -> list[RankedList]:
        """The ranked lists of queries (Q, D), in order."""
        groups: Iterable[tuple[slice, Gallery]] = [(slice(None), self.gallery)]
        if self.collection is not None:
            nearest = max(options.k, RERANKED) if options.rerank else options.k
            groups = self.collection.nearest(embeddings, k=nearest, conditions=self.conditions)
        lists: list[RankedList] = []
        for part, gallery in groups:
            found = _find(
                embeddings[part],
                gallery,
                tuple(self.parts.values()),
                self.allowed,
                k=options.k,
                rerank=options.rerank,
                progress=progress,
            )
            lists += [
                RankedList(name, image, name, _matches(gallery, rows, scores, distances, decision))
                for (name, image), rows, scores, distances in zip(names[part], *found, strict=True)
            ]
        return lists


def _count(
    collection: Collection, conditions: Sequence[Condition], parts: dict[str, slice]
) -> tuple[int, int]:
    """How many rows there are, and how many fulfil the conditions."""
    if len(parts) < len(collection.record["heads"]):
        raise UsageError(
            f"--heads: the index of '{collection.place}' compares whole embeddings; embed these "
            "heads alone (--heads) into a collection of their own"
        )
    rows = collection.count()
    searched = collection.count(conditions) if conditions else rows
    if not rows:
        raise DataError(f"collection '{collection.place}' is empty; `airnet embed` fills it")
    if not searched:
        raise DataError(
            f"no row of '{collection.place}' fulfils {' and '.join(map(str, conditions))}; "
            f"its columns are {', '.join(('path', *collection.columns))}"
        )
    return rows, searched


def _choose_parts(gallery: Gallery, heads: Sequence[str] | None) -> dict[str, slice]:
    """The columns of the heads to compare, in the gallery's order."""
    unknown = [name for name in heads or () if name not in gallery.heads]
    if unknown or (heads is not None and not heads):
        raise UsageError(
            f"head {', '.join(unknown) or '(none)'}: gallery '{gallery.path}' has "
            f"{', '.join(gallery.heads)}; choose among these"
        )
    return {name: part for name, part in gallery.heads.items() if heads is None or name in heads}


_Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float64]]
"""Rows, scores and distances (Q, k), best first; distances are NaN without re-ranking."""


def _find(
    queries: npt.NDArray[np.float32],
    gallery: Gallery,
    parts: Sequence[slice],
    allowed: npt.NDArray[np.bool_] | None,
    *,
    k: int,
    rerank: bool,
    progress: Progress,
) -> _Found:
    found = search(
        queries=queries,
        gallery_embeddings=gallery.embeddings,
        k=max(k, RERANKED) if rerank else k,
        allowed=allowed,
        parts=parts,
        progress=progress,
    )
    distances = np.full(found.rows.shape, np.nan)
    if not rerank:
        return found.rows, found.scores, distances
    columns = np.concatenate([np.arange(queries.shape[1])[part] for part in parts])
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
    return found.rows[query, order], found.scores[query, order], distances[query, order]


def _matches(
    gallery: Gallery,
    rows: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    distances: npt.NDArray[np.float64],
    decision: Decision | None,
) -> tuple[RankedMatch, ...]:
    known = [name for name in gallery.columns if name != "path"]

    def state(score: float) -> MatchState:
        if decision is None:
            return "unjudged"
        return "same" if score >= decision.threshold else "unknown"

    return tuple(
        RankedMatch(
            rank=rank,
            row=row if isinstance(gallery.path, Path) else None,
            name=gallery.image_name(row),
            score=score,
            state=state(score),
            columns={name: gallery.columns[name][row] for name in known},
            distance=None if np.isnan(distance) else distance,
        )
        for rank, (row, score, distance) in enumerate(
            zip(rows.tolist(), scores.tolist(), distances.tolist(), strict=True), start=1
        )
    )


def _match_dict(match: RankedMatch) -> dict[str, Any]:
    described: dict[str, Any] = {
        "rank": match.rank,
        "row": match.row,
        "path": match.name,
        "score": match.score,
        "verdict": match.verdict,
        "columns": dict(match.columns),
    }
    return described if match.distance is None else {**described, "distance": match.distance}


def _find_model(
    gallery: Gallery, checkpoint: Path | None, runs_root: Path
) -> tuple[Model | None, str]:
    """The model that embedded the gallery; or None, and why it was not found."""
    recorded = Path(str(gallery.record.get("checkpoint", "")))
    path = recorded if checkpoint is None else checkpoint
    if checkpoint is None and not is_file(recorded):
        return None, (
            f"gallery '{gallery.path}' was embedded by {model_words(gallery)}, which does not "
            "exist; give the model as --checkpoint, or embed the gallery again"
        )
    model = find_model(path, runs_root)
    fingerprint = model_fingerprint(model.checkpoint)
    if fingerprint == gallery.fingerprint:
        return model, ""
    why = (
        f"gallery '{gallery.path}' was embedded by {model_words(gallery)}, and "
        f"'{model.checkpoint}' is another model ({fingerprint[:12]}): their embeddings "
        "can't be compared; give the gallery's model as --checkpoint, or embed the gallery again "
        "with this one"
    )
    if checkpoint is not None:
        raise CheckpointError(why)
    return None, why


def _check_drawing(queries: Queries, options: MatchOptions) -> None:
    """Refuse, before any work, what can't be drawn."""
    picture = options.picture
    if picture is not None and picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError(
            f"'{picture}' is not a picture's name; end it in {', '.join(PICTURE_SUFFIXES)}"
        )
    if picture is None and options.page is None:
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
    if options.k > LONGEST_DRAWN:
        raise UsageError(
            f"-k {options.k} is too long for a picture or page (at most {LONGEST_DRAWN}); use "
            "--csv or --json"
        )


def _write_outputs(matching: Matching, options: MatchOptions) -> None:
    if options.table is not None:
        write_text(options.table, _table(matching))
    title = f"Matches in {matching.gallery.name}"
    if options.picture is not None:
        save_picture(draw_ranked_lists(matching.queries, title=title), options.picture)
    if options.page is not None:
        section = Section("Matches", _in_words(matching), matching.queries)
        text = f"Gallery: {matching.gallery}"
        write_report(options.page, title=title, sections=[section], text=text)


def _table(matching: Matching) -> str:
    text = io.StringIO(newline="")
    distance = ["distance"] if matching.reranked else []
    header = ["query", "rank", "row", "path", "score", "verdict", *distance, *matching.columns]
    write_rows(text, [header])
    for query in matching.queries:
        for match in query.matches:
            row = "" if match.row is None else match.row
            cells = [query.query, match.rank, row, match.name, match.score]
            cells += [match.verdict or "", *([match.distance] if matching.reranked else [])]
            write_rows(text, [[*cells, *(match.columns[name] for name in matching.columns)]])
    return text.getvalue()


def _in_words(matching: Matching) -> str:
    """How the lists were made, for the reader of a page."""
    words = f"{matching.rows_searched:,} of {matching.rows:,} images were searched"
    if matching.where:
        words += f" ({', '.join(matching.where)})"
    words += f" by the cosine of {', '.join(matching.heads)}"
    words += ", re-ranked by k-reciprocal neighbours. " if matching.reranked else ". "
    decision = matching.decision
    if decision is None:
        return words + "There is no threshold for the same person, so there is no verdict."
    words += f"Scores from {decision.threshold:.4f} mean the same person"
    if decision.data is None:
        return words + "."
    return (
        f"{words}: on {decision.data}, {decision.far:g} of the pairs of two people score so high."
    )
