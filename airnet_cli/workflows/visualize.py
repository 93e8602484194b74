"""Pictures that show what a network looked at and what it found: files and a page for people.

Three kinds of sheet, each wanted or not: Grad-CAM, attention, ranked lists. A sheet becomes a
picture (ranked lists also JSON beside it), a part of the HTML page, or both.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from airnet_cli.core.data.manifest import Manifest, load_prepared
from airnet_cli.core.data.records import DISTRACTOR, JUNK, ImageRecord
from airnet_cli.core.data.sources import list_images
from airnet_cli.core.data.transforms import read_image
from airnet_cli.core.drawing import (
    NOT_RANKED,
    MatchState,
    RankedMatch,
    RankedRow,
    SaliencyPanel,
    SaliencyRow,
    draw_heat,
    draw_ranked_lists,
    draw_saliency_sheet,
    open_picture,
)
from airnet_cli.core.files import parse_json, replacing, write_json
from airnet_cli.core.gallery import Gallery
from airnet_cli.core.gallery.folder import open_gallery
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.report import Block, Figure, FigureRow, Section, write_report
from airnet_cli.core.runtime import DeviceName
from airnet_cli.core.saliency import (
    HeadSaliency,
    attention_maps,
    explain_identity,
    explain_similarity,
    has_attention,
)
from airnet_cli.errors import CheckpointError, DataError, UsageError
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.runs import Model, find_model

SheetName = Literal["gradcam", "attention", "ranking"]

JSON_FORMAT = "airnet-ranking"
JSON_VERSION = 1

DEFAULT_COUNT = 4
"""Images that are taken from the data set where none is named."""
MOST_IMAGES = 64
"""More on one sheet can't be looked at."""
BATCH = 16
"""Images that are explained together."""
GALLERY_BLOCK = 8192
"""Rows of a gallery file that are compared at a time."""
WHOLE = "whole"
"""The name in JSON of the ranking by the whole embedding; the others are named by their heads."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Visualization:
    """What was written."""

    model: Model
    pictures: tuple[Path, ...]
    rankings: Path | None
    """The JSON beside the picture of ranked lists."""
    report: Path | None


def visualize(
    *,
    sheets: Sequence[SheetName],
    images: Sequence[Path],
    against: Path | None,
    compare: Path | None,
    gallery: Path | None,
    allow_partial: bool = False,
    checkpoint: Path | None,
    runs_root: Path,
    data_name: str | None,
    data_root: Path,
    count: int | None,
    top: int,
    output: Path | None,
    html: Path | None,
    device: DeviceName,
    batch_size: int,
    workers: int,
    on_model: Callable[[Model], None],
    progress: Progress = silent,
) -> Visualization:
    """Draw `sheets` of `images`, as pictures and as a page.

    Args:
        sheets: which kinds, at least one.
        images: the pictures to explain or to look for, or folders of them; none: queries of the
            data set, each of another person, evenly spread.
        against: explain the cosine with this picture instead of the predicted identity.
        compare: a run or checkpoint whose Grad-CAM columns are added.
        gallery: rank this gallery (its .npy file or folder) instead of the data set's, which is
            embedded.
        allow_partial: rank a gallery although parts of its job are missing.
        checkpoint: a run or checkpoint; None: the newest finished run under `runs_root`.
        runs_root: where runs are.
        data_name: a prepared data set; None: the one the network was trained on.
        data_root: where prepared data sets are.
        count: how many queries to take where `images` is empty; None: 4.
        top: the length of ranked lists, ignored and junk pictures included.
        output: a picture's file, or a folder for them; None: the current folder, or no pictures
            where `html` is given.
        html: the page's file; None: no page.
        device: where to compute.
        batch_size: images that are embedded together.
        workers: processes that read images.
        on_model: told which model it is before the work starts.
        progress: told about embedding the gallery.

    Raises:
        UsageError: options that contradict each other, or a head that the network lacks.
        CheckpointError: no such run or checkpoint, or another model than the gallery's.
        DataError: the data set or an image is missing or broken.
    """
    images = _files(images)
    _check_request(sheets, images, against=against, compare=compare, gallery=gallery, count=count)
    places = _places(sheets, output=output, html=html)
    found = find_model(checkpoint, runs_root)
    on_model(found)

    def load(path: Path) -> Embedder:
        return Embedder.load(path, device=device, batch_size=batch_size, workers=workers)

    embedder = load(found.checkpoint)
    if "attention" in sheets and not has_attention(embedder.network):
        raise UsageError(
            f"variant '{embedder.network.variant}' has no interaction head, so there is no "
            "attention to show; leave --attention out, or take a run of airnet, parallel_abp or "
            "baseline_abp"
        )
    other = None if compare is None else load(find_model(compare, runs_root).checkpoint)
    # A data set is needed for queries and for a gallery to rank; else it only knows who is who.
    is_needed = not images or ("ranking" in sheets and gallery is None)
    manifest = _manifest(embedder, data_root, data_name, is_needed=is_needed)
    if not images:
        assert manifest is not None, "loaded above, or an error"
        images = _pick_queries(manifest, DEFAULT_COUNT if count is None else count)

    drawn: list[_Sheet] = []
    for name in sheets:
        match name:
            case "gradcam":
                drawn.append(_gradcam_sheet(embedder, other, images, against))
            case "attention":
                drawn.append(_attention_sheet(embedder, images))
            case "ranking":
                opened = None
                if gallery is not None:
                    opened = open_gallery(gallery, allow_partial=allow_partial)
                drawn.append(
                    _ranking_sheet(
                        embedder, images, manifest, opened, found, top=top, progress=progress
                    )
                )
    rankings = _write_pictures(drawn, places)
    if html is not None:
        write_report(
            html,
            title="What the network looked at",
            text=f"{_model_words(embedder)}, from {found.run or found.checkpoint}",
            sections=[Section(sheet.title, sheet.text, sheet.blocks()) for sheet in drawn],
        )
    return Visualization(found, tuple(places.values()), rankings, html)


@dataclass(frozen=True)
class _Sheet:
    """One kind of sheet, computed but not drawn."""

    name: SheetName
    title: str
    text: str
    """How to read it."""
    saliency: tuple[SaliencyRow, ...] = ()
    rankings: tuple[RankedRow, ...] = ()
    data: dict[str, Any] | None = None
    """The same as JSON; ranked lists only."""

    def draw(self) -> Image.Image:
        if self.rankings:
            return draw_ranked_lists(self.rankings, title=self.title)
        return draw_saliency_sheet(self.saliency, title=self.title)

    def blocks(self) -> tuple[Block, ...]:
        if self.rankings:
            return self.rankings
        return tuple(_figure_row(row) for row in self.saliency)


def _gradcam_sheet(
    embedder: Embedder, other: Embedder | None, images: Sequence[Path], against: Path | None
) -> _Sheet:
    models = [embedder] if other is None else [embedder, other]
    named = list(zip(models, _names_apart(models), strict=True))
    rows: list[SaliencyRow] = []
    for start in range(0, len(images), BATCH):
        paths = images[start : start + BATCH]
        panels: list[list[SaliencyPanel]] = [[] for _ in paths]
        panels_of_other: list[list[SaliencyPanel]] = [[] for _ in paths]
        for model, name in named:
            batch = _read(model, paths)
            if against is None:
                explained, reverse = explain_identity(model.network, batch), []
            else:
                others = _read(model, [against])
                explained = explain_similarity(model.network, batch, others)
                reverse = explain_similarity(model.network, others.expand_as(batch), batch)
            for index, saliencies in enumerate(explained):
                panels[index] += [_gradcam_panel(model, name, head) for head in saliencies]
            for index, saliencies in enumerate(reverse):
                panels_of_other[index] += [_gradcam_panel(model, name, head) for head in saliencies]
        for path, of_image, of_other in zip(paths, panels, panels_of_other, strict=True):
            rows.append(SaliencyRow(path.name, path, tuple(of_image)))
            if against is not None:
                label = f"{against.name}, against {path.name}"
                rows.append(SaliencyRow(label, against, tuple(of_other)))
    if against is None:
        title = "Grad-CAM of the identity that each head predicts"
        text = (
            "Where each head finds what speaks for the identity that it predicts: the training "
            "identity which it thinks most alike, with its probability."
        )
    else:
        title = f"Grad-CAM of the cosine with {against.name}"
        text = (
            "What makes each head think two pictures alike: first in the one, then in the other. "
            "The number is the head's cosine, from -1 to 1."
        )
    return _Sheet("gradcam", title, text + _SCALED, saliency=tuple(rows))


_SCALED = (
    " The stronger, the more colour; each map is scaled by its own strongest place: compare where, "
    "not how much."
)


def _gradcam_panel(model: Embedder, name: str, saliency: HeadSaliency) -> SaliencyPanel:
    if saliency.identity is None or saliency.probability is None:
        caption = f"cosine {saliency.score:.3f}"
    else:
        person_id = model.checkpoint.identities[saliency.identity]
        caption = f"person {person_id}: {saliency.probability:.0%}"
    if not saliency.heat.any():
        caption += "\nno place speaks for it"
    return SaliencyPanel(saliency.head, name, saliency.heat, is_signed=False, caption=caption)


def _attention_sheet(embedder: Embedder, images: Sequence[Path]) -> _Sheet:
    rows: list[SaliencyRow] = []
    for start in range(0, len(images), BATCH):
        paths = images[start : start + BATCH]
        maps = attention_maps(embedder.network, _read(embedder, paths))
        for path, of_image in zip(paths, maps, strict=True):
            panels = tuple(
                SaliencyPanel(
                    attention.head,
                    embedder.network.variant,
                    attention.heat,
                    is_signed=attention.is_signed,
                    caption=f"{attention.heat.min():.2g} to {attention.heat.max():.2g}",
                )
                for attention in of_image
            )
            rows.append(SaliencyRow(path.name, path, panels))
    if embedder.preset.model.attention == "softmax":
        text = "The softmax of X Wu: the share that attention-based pooling gives each place."
    else:
        text = (
            "The weight X Wu that attention-based pooling (eq. 3) gives each place. It is signed: "
            "orange and blue places count against each other, and which is which has no meaning "
            "of its own."
        )
    return _Sheet(
        "attention", "Attention of the interaction head", text + _SCALED, saliency=tuple(rows)
    )


def _ranking_sheet(
    embedder: Embedder,
    images: Sequence[Path],
    manifest: Manifest | None,
    gallery: Gallery | None,
    model: Model,
    *,
    top: int,
    progress: Progress,
) -> _Sheet:
    if gallery is None:
        assert manifest is not None, "loaded by the caller, or an error"
        ranked = _gallery_of_data(embedder, manifest, progress)
    else:
        ranked = _gallery_of_file(embedder, gallery)
    parts = {WHOLE: slice(None)}
    if len(embedder.heads) > 1:  # a single head is the whole embedding
        parts |= embedder.heads
    queries = embedder(list(images))
    scores = _cosines(queries, ranked.embeddings, rows=len(ranked.entries), parts=parts)
    known = {} if manifest is None else _records_by_path(manifest)
    rows: list[RankedRow] = []
    lists: list[dict[str, Any]] = []
    for index, path in enumerate(images):
        record = known.get(path.resolve())
        query = _Entry(path, *((None, None) if record is None else _ids(record)))
        rankings: dict[str, list[dict[str, Any]]] = {}
        for part in parts:
            of_part = scores[part][index]  # (G,)
            best = np.argsort(-of_part, kind="stable")[:top]  # of equal scores the lower row first
            found = [_found(query, ranked.entries[row], float(of_part[row])) for row in best]
            words = "whole embedding" if part == WHOLE else f"head {part}"
            rows.append(RankedRow(f"{_query_words(query)}  ·  {words}", path, tuple(found)))
            rankings[part] = _matches_json(found, best, ranked.entries)
        lists.append(
            {
                "query": str(path),
                "person_id": query.person_id,
                "camera_id": query.camera_id,
                "rankings": rankings,
            }
        )
    data = {
        "format": JSON_FORMAT,
        "version": JSON_VERSION,
        "model": {
            "checkpoint": str(model.checkpoint),
            "fingerprint": embedder.fingerprint,
            "variant": embedder.network.variant,
            "backbone": embedder.preset.model.backbone,
        },
        "gallery": {"name": ranked.name, "rows": len(ranked.entries)},
        "queries": lists,
    }
    text = (
        "The nearest pictures by cosine, by the whole embedding and by each head alone. Pictures "
        "of the same person by the same camera are ignored and junk is not ranked, as in the "
        "evaluation. A click on a list shows its numbers."
    )
    title = f"Ranked lists, {ranked.name}"
    return _Sheet("ranking", title, text, rankings=tuple(rows), data=data)


@dataclass(frozen=True)
class _Entry:
    """A picture, and who is on it as far as it is known."""

    path: Path
    person_id: int | None
    camera_id: int | None


@dataclass(frozen=True, eq=False)
class _Ranked:
    """The pictures that are ranked, and their embeddings in pieces."""

    name: str
    entries: Sequence[_Entry]
    embeddings: Iterable[npt.NDArray[np.floating[Any]]]
    """(rows, D) each, all of `entries` in order."""


def _gallery_of_data(embedder: Embedder, manifest: Manifest, progress: Progress) -> _Ranked:
    """The data set's gallery, junk included, embedded piece by piece."""
    records = manifest.split("gallery")
    if not records:
        raise DataError(
            f"data set '{manifest.name}' has no gallery images to rank; give --gallery GALLERY.npy"
        )
    paths = [manifest.root / record.path for record in records]

    def embed() -> Iterator[npt.NDArray[np.floating[Any]]]:
        for _, embeddings in embedder.embed_paths(paths, progress=progress):
            yield embeddings

    entries = [_Entry(path, *_ids(record)) for path, record in zip(paths, records, strict=True)]
    return _Ranked(f"data set {manifest.name}", entries, embed())


def _gallery_of_file(embedder: Embedder, gallery: Gallery) -> _Ranked:
    """A gallery that `airnet embed` wrote with this very model."""
    if gallery.fingerprint != embedder.fingerprint:
        raise CheckpointError(
            f"gallery '{gallery.path}' was embedded by another model "
            f"({gallery.record.get('checkpoint')}, {gallery.fingerprint[:12]}) than "
            f"'{embedder.checkpoint.path}' ({embedder.fingerprint[:12]}); give that one as "
            "--checkpoint, or embed the images again"
        )
    if (
        gallery.heads != embedder.heads
        or gallery.flip
        or gallery.normalize_heads != (embedder.normalize_heads)
    ):
        raise CheckpointError(
            f"gallery '{gallery.path}' was embedded with --heads or --flip; ranked lists need all "
            "heads and no flip: embed the images again without these"
        )

    def ids(name: str) -> list[int | None]:
        values = gallery.columns.get(name)
        if values is None:
            return [None] * len(gallery.embeddings)
        return [_number(value) for value in values]

    entries = [
        _Entry(gallery.image_path(row), person_id, camera_id)
        for row, (person_id, camera_id) in enumerate(
            zip(ids("person_id"), ids("camera_id"), strict=True)
        )
    ]
    pieces = (
        gallery.embeddings[start : start + GALLERY_BLOCK]
        for start in range(0, len(entries), GALLERY_BLOCK)
    )
    return _Ranked(f"gallery {gallery.path.name}", entries, pieces)


def _cosines(
    queries: npt.NDArray[np.float32],
    pieces: Iterable[npt.NDArray[np.floating[Any]]],
    *,
    rows: int,
    parts: dict[str, slice],
) -> dict[str, npt.NDArray[np.float32]]:
    """The cosines (Q, G) of `queries` (Q, D) with G gallery `rows`, for each part of the vectors.

    Only the cosines of a few queries are kept, never the gallery's embeddings.
    """
    scores = {part: np.empty((len(queries), rows), np.float32) for part in parts}
    first = 0
    for piece in pieces:
        block = piece.astype(np.float32, copy=False)
        for part, columns in parts.items():
            left, right = _unit(queries[:, columns]), _unit(block[:, columns])
            scores[part][:, first : first + len(block)] = left @ right.T
        first += len(block)
    return scores


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays, and is like nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    unit: npt.NDArray[np.float32] = vectors / lengths
    return unit


def _found(query: _Entry, entry: _Entry, score: float) -> RankedMatch:
    return RankedMatch(entry.path, score, _state(query, entry), _caption(entry))


def _state(query: _Entry, entry: _Entry) -> MatchState:
    """What an entry is for a query, by the protocol of the evaluation (method: "Evaluation")."""
    if entry.person_id == JUNK:
        return "junk"
    if query.person_id is None or entry.person_id is None:
        return "unknown"
    if query.person_id != entry.person_id:
        return "wrong"
    return "ignored" if query.camera_id == entry.camera_id else "right"


def _matches_json(
    found: Sequence[RankedMatch], rows: npt.NDArray[np.int64], entries: Sequence[_Entry]
) -> list[dict[str, Any]]:
    matches: list[dict[str, Any]] = []
    rank = 0
    for match, row in zip(found, rows, strict=True):
        rank += match.state not in NOT_RANKED
        matches.append(
            {
                "rank": None if match.state in NOT_RANKED else rank,
                "row": int(row),
                "path": str(match.path),
                "score": match.score,
                "state": match.state,
                "person_id": entries[row].person_id,
                "camera_id": entries[row].camera_id,
            }
        )
    return matches


def _caption(entry: _Entry) -> str:
    match entry.person_id:
        case None:
            return entry.path.name
        case person_id if person_id == JUNK:
            who = "junk"
        case person_id if person_id == DISTRACTOR:
            who = "distractor"
        case person_id:
            who = f"person {person_id}"
    return who if entry.camera_id is None else f"{who}, c{entry.camera_id}"


def _query_words(query: _Entry) -> str:
    known = "" if query.person_id is None else f" ({_caption(query)})"
    return f"{query.path.name}{known}"


def _check_request(
    sheets: Sequence[SheetName],
    images: Sequence[Path],
    *,
    against: Path | None,
    compare: Path | None,
    gallery: Path | None,
    count: int | None,
) -> None:
    if not sheets:
        raise UsageError("say what to show: --gradcam, --attention, --ranking, or several of them")
    for option, value, sheet in (
        ("--against", against, "gradcam"),
        ("--compare", compare, "gradcam"),
        ("--gallery", gallery, "ranking"),
    ):
        if value is not None and sheet not in sheets:
            raise UsageError(f"{option} belongs to --{sheet}; add that, or leave {option} out")
    if images and count is not None:
        raise UsageError("--count is for queries of the data set; leave it out, or the images")
    if max(len(images), count or 0) > MOST_IMAGES:
        raise UsageError(
            f"a sheet of {max(len(images), count or 0):,} images can't be looked at; give up to "
            f"{MOST_IMAGES}"
        )
    for path in (*images, *([against] if against else [])):
        if not path.is_file():
            what = "is a folder; name one image" if path.is_dir() else "does not exist"
            raise DataError(f"image '{path}' {what}")


def _files(images: Sequence[Path]) -> list[Path]:
    """The images themselves, in the order given; those of a folder by name."""
    return [
        file
        for path in images
        for file in (list_images([path], must_exist=True).paths if path.is_dir() else [path])
    ]


def _places(
    sheets: Sequence[SheetName], *, output: Path | None, html: Path | None
) -> dict[SheetName, Path]:
    """Where each picture goes; nowhere, where only a page is wanted."""
    if output is None:
        return {} if html is not None else {name: Path(f"{name}.png") for name in sheets}
    if output.is_dir() or not output.suffix:
        return {name: output / f"{name}.png" for name in sheets}
    if output.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError(
            f"'{output}' is no picture's name; end it in {', '.join(PICTURE_SUFFIXES)}, or give a "
            "folder"
        )
    if len(sheets) > 1:
        raise UsageError(
            f"'{output}' is one picture, and {len(sheets)} were asked for; give a folder as -o"
        )
    return dict.fromkeys(sheets, output)


def _write_pictures(drawn: Sequence[_Sheet], places: dict[SheetName, Path]) -> Path | None:
    """Write each sheet that has a place; where the JSON beside the ranked lists lies."""
    rankings = None
    for sheet in drawn:
        if sheet.name not in places:
            continue
        place = places[sheet.name]
        if sheet.data is not None:
            rankings = place.with_suffix(".json")
            _check_ours(rankings)
            write_json(rankings, sheet.data)
        picture = sheet.draw()
        with replacing(place) as temporary:
            kind = Image.registered_extensions()[place.suffix.lower()]
            picture.save(temporary, kind)
    return rankings


def _check_ours(path: Path) -> None:
    """Refuse to write over JSON of another kind, such as a gallery's record."""
    try:
        format_name = parse_json(path.read_text(encoding="utf-8"))["format"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        format_name = None
    if format_name != JSON_FORMAT:
        raise UsageError(
            f"'{path}' is there and holds something else than ranked lists; give the picture "
            "another name with -o, since the lists are written beside it"
        )


def _manifest(
    embedder: Embedder, data_root: Path, data_name: str | None, *, is_needed: bool
) -> Manifest | None:
    try:
        return load_prepared(data_root, data_name or embedder.preset.data.name)
    except DataError:
        # Without it nobody knows who is on the images, and nothing else is missing. But what was
        # asked for by name must be there.
        if is_needed or data_name is not None:
            raise
        return None


def _pick_queries(manifest: Manifest, count: int) -> list[Path]:
    """Queries of as many people as there are, evenly spread over them; the same every time."""
    seen: dict[int, int] = {}
    rounds: list[tuple[int, int, ImageRecord]] = []
    for record in manifest.split("query"):
        turn = seen[record.person_id] = seen.get(record.person_id, -1) + 1
        rounds.append((turn, record.person_id, record))
    if not rounds:
        raise DataError(f"data set '{manifest.name}' has no query images; name the images to show")
    rounds.sort(key=lambda entry: entry[:2])
    people = len(seen)
    if count < people:
        rounds = [rounds[index * people // count] for index in range(count)]
    return [manifest.root / record.path for _, _, record in rounds[:count]]


def _records_by_path(manifest: Manifest) -> dict[Path, ImageRecord]:
    root = manifest.root.resolve()
    return {root / record.path: record for record in manifest.records}


def _ids(record: ImageRecord) -> tuple[int, int]:
    return record.person_id, record.camera_id


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _read(embedder: Embedder, paths: Sequence[Path]) -> torch.Tensor:
    """The images (B, 3, H, W), uint8, as the network takes them."""
    size = {"height_px": embedder.height_px, "width_px": embedder.width_px}
    return torch.stack([read_image(path, **size) for path in paths]).to(embedder.device)


def _names_apart(models: Sequence[Embedder]) -> list[str]:
    """A word for each model: its variant, or what tells two of the same variant apart."""
    for names in (
        [model.network.variant for model in models],
        [f"{model.network.variant}, {model.preset.model.backbone}" for model in models],
        [model.checkpoint.path.parent.name for model in models],
    ):
        if len(set(names)) == len(names):
            return list(names)
    return [str(model.checkpoint.path) for model in models]


def _model_words(embedder: Embedder) -> str:
    return f"{embedder.network.variant} with {embedder.preset.model.backbone}"


def _figure_row(row: SaliencyRow) -> FigureRow:
    picture = open_picture(row.image)
    figures = [Figure(picture, "picture", "")]
    for panel in row.panels:
        shown = draw_heat(picture, panel.heat, is_signed=panel.is_signed)
        figures.append(Figure(shown, f"{panel.heading} {panel.model}", panel.caption))
    return FigureRow(row.label, tuple(figures))
