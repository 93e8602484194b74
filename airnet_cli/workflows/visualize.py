"""Pictures of what a network looked at and what it found: files, and a page for people.

Three kinds of sheet: Grad-CAM, attention, ranked lists. A sheet becomes a picture (ranked lists
also JSON next to it), a section of the HTML page, or both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from airnet_cli.core.data.manifest import Manifest, load_prepared
from airnet_cli.core.data.records import ImageRecord
from airnet_cli.core.data.sources import list_images
from airnet_cli.core.data.transforms import read_image
from airnet_cli.core.drawing import (
    PICTURE_SUFFIXES,
    SaliencyPanel,
    SaliencyRow,
    draw_heat,
    draw_ranked_lists,
    draw_saliency_sheet,
    open_picture,
    save_picture,
)
from airnet_cli.core.files import read_json, write_json
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.ranked import RankedList
from airnet_cli.core.report import Block, Figure, FigureRow, Section, write_report
from airnet_cli.core.runtime import DeviceName
from airnet_cli.core.saliency import (
    HeadSaliency,
    attention_maps,
    explain_identity,
    explain_similarity,
    has_attention,
)
from airnet_cli.errors import DataError, UsageError
from airnet_cli.workflows.embedder import Embedder
from airnet_cli.workflows.ranking import JSON_FORMAT, Rankings, rank
from airnet_cli.workflows.runs import Model, find_model

SheetName = Literal["gradcam", "attention", "ranking"]

DEFAULT_COUNT = 4
"""Images that are taken from the data set where none is named."""
MOST_IMAGES = 64
"""Images on one sheet; more can't be read."""
BATCH = 16
"""Images that are explained together."""


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions:
    """What to show, of which images, and where to write it."""

    sheets: Sequence[SheetName]
    """Kinds of sheets, at least one."""
    images: Sequence[Path] = ()
    """Images to explain or to search, or folders of them; none: queries of the data set."""
    against: Path | None = None
    """Explain the cosine with this image instead of the predicted identity."""
    compare: Path | None = None
    """A run or checkpoint whose Grad-CAM columns are added."""
    gallery: Path | None = None
    """Rank this gallery instead of the data set's, which is embedded."""
    allow_partial: bool = False
    """Rank a folder although parts of its job are missing."""
    checkpoint: Path | None = None
    """A run or checkpoint; None: the newest finished run under `runs_root`."""
    runs_root: Path
    data_name: str | None = None
    """A prepared data set; None: the one the network was trained on."""
    data_root: Path
    count: int | None = None
    """How many queries to take where `images` is empty; None: `DEFAULT_COUNT`."""
    top: int = 10
    """Length of ranked lists, including images that are ignored or junk."""
    output: Path | None = None
    """A picture, or a folder for pictures; None: the current folder, or no picture with `html`."""
    html: Path | None = None
    """The page."""
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0


@dataclass(frozen=True)
class Visualization:
    """The files that were written."""

    model: Model
    pictures: tuple[Path, ...]
    rankings: Path | None
    """The JSON next to the picture of ranked lists."""
    report: Path | None


def visualize(
    options: VisualizeOptions, *, on_model: Callable[[Model], None], progress: Progress = silent
) -> Visualization:
    """Draw the sheets, as pictures and as a page.

    Args:
        options: what to show.
        on_model: told which model is used, before the work starts.
        progress: told about embedding the gallery.

    Raises:
        UsageError: options that contradict each other, or a head that the network lacks.
        CheckpointError: no such run or checkpoint, or another model than the gallery's.
        DataError: the data set or an image is missing or broken.
    """
    images = _files(options.images)
    _check_request(options, images)
    places = _places(options)
    found = find_model(options.checkpoint, options.runs_root)
    on_model(found)

    def load(path: Path) -> Embedder:
        return Embedder.load(
            path, device=options.device, batch_size=options.batch_size, workers=options.workers
        )

    embedder = load(found.checkpoint)
    if "attention" in options.sheets and not has_attention(embedder.network):
        raise UsageError(
            f"variant '{embedder.network.variant}' has no interaction head, so there is no "
            "attention to show; leave --attention out, or take a run of airnet, parallel_abp or "
            "baseline_abp"
        )
    other = None
    if options.compare is not None:
        other = load(find_model(options.compare, options.runs_root).checkpoint)
    # A data set is needed for queries and for a gallery to rank; else it only has the labels.
    is_needed = not images or ("ranking" in options.sheets and options.gallery is None)
    manifest = _manifest(embedder, options, is_needed=is_needed)
    if not images:
        assert manifest is not None, "loaded above, or an error"
        images = _pick_queries(manifest, options.count or DEFAULT_COUNT)

    drawn: list[_Sheet] = []
    for name in options.sheets:
        match name:
            case "gradcam":
                drawn.append(_gradcam_sheet(embedder, other, images, options.against))
            case "attention":
                drawn.append(_attention_sheet(embedder, images))
            case "ranking":
                ranked = rank(
                    embedder,
                    images,
                    manifest=manifest,
                    gallery=options.gallery,
                    allow_partial=options.allow_partial,
                    model=found,
                    top=options.top,
                    progress=progress,
                )
                drawn.append(_ranking_sheet(ranked))
    rankings = _write_pictures(drawn, places)
    if options.html is not None:
        write_report(
            options.html,
            title="What the network looked at",
            text=f"{_model_words(embedder)}, from {found.run or found.checkpoint}",
            sections=[Section(sheet.title, sheet.text, sheet.blocks()) for sheet in drawn],
        )
    return Visualization(found, tuple(places.values()), rankings, options.html)


@dataclass(frozen=True)
class _Sheet:
    """One kind of sheet, computed but not drawn."""

    name: SheetName
    title: str
    text: str
    """How to read it."""
    saliency: tuple[SaliencyRow, ...] = ()
    rankings: tuple[RankedList, ...] = ()
    data: dict[str, Any] | None = None
    """The ranked lists as JSON."""

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
                    is_signed=True,
                    caption=f"{attention.heat.min():.2g} to {attention.heat.max():.2g}",
                )
                for attention in of_image
            )
            rows.append(SaliencyRow(path.name, path, panels))
    text = (
        "The weight X Wu that attention-based pooling (eq. 3) gives each place. It is signed: "
        "orange and blue places count against each other, and which is which has no meaning "
        "of its own."
    )
    return _Sheet(
        "attention", "Attention of the interaction head", text + _SCALED, saliency=tuple(rows)
    )


def _ranking_sheet(ranked: Rankings) -> _Sheet:
    text = (
        "The nearest images by cosine, by the whole embedding and by each head alone. Images "
        "of the same person by the same camera are ignored and junk is not ranked, as in the "
        "evaluation. Click a list to see its numbers."
    )
    title = f"Ranked lists, {ranked.gallery}"
    return _Sheet("ranking", title, text, rankings=ranked.lists, data=ranked.data)


def _check_request(options: VisualizeOptions, images: Sequence[Path]) -> None:
    sheets, against = options.sheets, options.against
    if not sheets:
        raise UsageError("say what to show: --gradcam, --attention, --ranking, or several of them")
    for option, value, sheet in (
        ("--against", against, "gradcam"),
        ("--compare", options.compare, "gradcam"),
        ("--gallery", options.gallery, "ranking"),
    ):
        if value is not None and sheet not in sheets:
            raise UsageError(f"{option} belongs to --{sheet}; add that, or leave {option} out")
    if images and options.count is not None:
        raise UsageError("--count is for queries of the data set; leave it out, or the images")
    count = max(len(images), options.count or 0)
    if count > MOST_IMAGES:
        raise UsageError(f"{count:,} images are too many for a sheet; give up to {MOST_IMAGES}")
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


def _places(options: VisualizeOptions) -> dict[SheetName, Path]:
    """Where each picture goes; empty if only a page is wanted."""
    sheets, output = options.sheets, options.output
    if output is None:
        return {} if options.html is not None else {name: Path(f"{name}.png") for name in sheets}
    if output.is_dir() or not output.suffix:
        return {name: output / f"{name}.png" for name in sheets}
    if output.suffix.lower() not in PICTURE_SUFFIXES:
        raise UsageError(
            f"'{output}' is not a picture's name; end it in {', '.join(PICTURE_SUFFIXES)}, or give "
            "a folder"
        )
    if len(sheets) > 1:
        raise UsageError(
            f"'{output}' is one picture, and {len(sheets)} were asked for; give a folder as -o"
        )
    return dict.fromkeys(sheets, output)


def _write_pictures(drawn: Sequence[_Sheet], places: dict[SheetName, Path]) -> Path | None:
    """Write each sheet that has a place; return the JSON next to the ranked lists."""
    rankings = None
    for sheet in drawn:
        if sheet.name not in places:
            continue
        place = places[sheet.name]
        if sheet.data is not None:
            rankings = place.with_suffix(".json")
            _check_ours(rankings)
            write_json(rankings, sheet.data)
        save_picture(sheet.draw(), place)
    return rankings


def _check_ours(path: Path) -> None:
    """Refuse to write over JSON of another kind, such as a gallery's record."""
    try:
        format_name = read_json(path)["format"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        format_name = None
    if format_name != JSON_FORMAT:
        raise UsageError(
            f"'{path}' is there and holds something else than ranked lists; give the picture "
            "another name with -o, since the lists are written beside it"
        )


def _manifest(embedder: Embedder, options: VisualizeOptions, *, is_needed: bool) -> Manifest | None:
    try:
        return load_prepared(options.data_root, options.data_name or embedder.preset.data.name)
    except DataError:
        # Only labels are missing then. But a data set that was named must be there.
        if is_needed or options.data_name is not None:
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
