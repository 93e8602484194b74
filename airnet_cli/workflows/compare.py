"""Scores of many runs side by side: one row per setting, mean and deviation over its seeds.

Runs of one setting differ in their seed alone (`settings.py`). Each data set has its own table.
Beside a row stand the paper's figures, where it has some for the data set and variant, with what
differs from its recipe; and the differences to another row, paired by seed: two runs of one seed
share their identities and batches, so their difference has less noise than each of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from airnet_cli.config.presets import load_preset
from airnet_cli.config.schema import VariantName
from airnet_cli.core.paper import TEST_SETS, PaperFigures, paper_figures
from airnet_cli.core.spread import Spread, spread
from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows.recorded import NotCounted, RecordedRun, find_recorded, read_object
from airnet_cli.workflows.runs import SCORES
from airnet_cli.workflows.settings import (
    VARIANT,
    Settings,
    differing_keys,
    identity,
    labels,
    settings_of,
    show_value,
)

JSON_VERSION = 1
SCORES_VERSION = 1
"""The version of scores.json that is read."""

DEFAULT_AGAINST = "baseline"

VARIANTS: tuple[str, ...] = get_args(VariantName)
"""In the order of Table 3, which is the order of rows."""


@dataclass(frozen=True)
class Scores:
    """The scores of one run, or of one head in it; fractions."""

    mAP: float
    mAP_trapezoid: float
    mINP: float
    rank1: float
    rank5: float
    rank10: float


@dataclass(frozen=True)
class SpreadScores:
    """The same over runs."""

    mAP: Spread
    mAP_trapezoid: Spread
    mINP: Spread
    rank1: Spread
    rank5: Spread
    rank10: Spread


@dataclass(frozen=True)
class ScoredRun:
    """A finished run, with its scores."""

    run: Path
    seed: int
    whole: Scores
    """Of the whole embedding."""
    heads: dict[str, Scores]


@dataclass(frozen=True)
class Paired:
    """What a row has more than another one: differences of runs with the same seed."""

    row: str
    """The label of the other row."""
    seeds: tuple[int, ...]
    """Those that both rows have."""
    differences: SpreadScores


@dataclass(frozen=True)
class Difference:
    """A setting in which a row and the paper's recipe are not the same, in words."""

    setting: str
    ours: str
    paper: str


@dataclass(frozen=True)
class BesidePaper:
    """The paper's figures for a row, and why the two are not the same experiment."""

    figures: PaperFigures
    mAP_difference: float
    """Ours less the paper's."""
    rank1_difference: float
    differs: tuple[Difference, ...]


@dataclass(frozen=True)
class Row:
    """One setting."""

    label: str
    """The variant, and what differs between the rows of the table."""
    settings: Settings
    runs: tuple[ScoredRun, ...]
    """One for each seed, by seed."""
    whole: SpreadScores
    heads: dict[str, SpreadScores]
    against: Paired | None
    """None in the row that others are held against, and where no seed is shared."""
    paper: BesidePaper | None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of its runs."""
        return tuple(run.seed for run in self.runs)

    def is_reference(self, name: str) -> bool:
        """Whether `--against name` can mean this row."""
        return name in (self.label, self.settings[VARIANT])


@dataclass(frozen=True)
class Table:
    """The rows of one data set."""

    data: str
    rows: tuple[Row, ...]

    @property
    def against(self) -> tuple[str, ...]:
        """The labels of the rows that others are held against."""
        others = (row.against.row for row in self.rows if row.against is not None)
        return tuple(dict.fromkeys(others))

    def differs(self) -> tuple[Difference, ...]:
        """How the rows beside the paper's differ from its recipe, once for each setting.

        Where rows are not alike, their labels say which has what.
        """
        merged: dict[str, list[Difference]] = {}
        for row in self.rows:
            for each in row.paper.differs if row.paper is not None else ():
                merged.setdefault(each.setting, []).append(each)
        return tuple(
            Difference(
                setting,
                "; ".join(dict.fromkeys(each.ours for each in found)),
                "; ".join(dict.fromkeys(each.paper for each in found)),
            )
            for setting, found in merged.items()
        )


@dataclass(frozen=True)
class Comparison:
    """What `airnet compare` shows."""

    tables: tuple[Table, ...]
    not_counted: tuple[NotCounted, ...]
    """Runs that are unfinished, broken, or older than another of the same setting and seed."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `compare --json` (docs/formats.md); fractions, not percent."""
        return {
            "version": JSON_VERSION,
            "tables": [
                {"data": table.data, "rows": [_row_dict(row) for row in table.rows]}
                for table in self.tables
            ],
            "not_counted": [
                {"run": str(each.run), "reason": each.reason} for each in self.not_counted
            ],
        }


def compare(paths: Sequence[Path], *, against: str | None = None) -> Comparison:
    """Read the runs at `paths` (run folders, or folders of them) and put them side by side.

    `against` is the label of a row, or a variant: each row is then held against the row of that
    variant with otherwise equal settings, or the only one. None: the variant `baseline`, where it
    was trained in the same way.

    Raises:
        CheckpointError: a path does not exist or holds no run, or none of the runs is finished.
        UsageError: `against` is no row.
    """
    found = find_recorded(paths)
    not_counted = list(found.broken)
    scored: list[_Scored] = []
    for run in found.runs:
        if not run.is_finished:
            not_counted.append(NotCounted(run.run, run.state()))
            continue
        try:
            scored.append(_read_scores(run))
        except CheckpointError as error:
            not_counted.append(NotCounted(run.run, str(error)))
    scored, older = _newest_of_each_seed(scored)
    not_counted += older
    names = sorted({each.data for each in scored})
    tables = tuple(
        _table(name, [each for each in scored if each.data == name], against) for name in names
    )
    rows = [row for table in tables for row in table.rows]
    if against is not None and rows and not any(row.is_reference(against) for row in rows):
        known = dict.fromkeys(row.label for row in rows)
        raise UsageError(f"--against '{against}' is no row; there are: {'; '.join(known)}")
    return Comparison(tables, tuple(not_counted))


@dataclass(frozen=True)
class _Scored:
    """A run that can be a part of a row."""

    recorded: RecordedRun
    data: str
    settings: Settings
    """Of the preset, and how it was scored."""
    counts: tuple[int, int]
    """Query images and ranked gallery images."""
    scores: ScoredRun


_PROTOCOL: dict[str, object] = {
    "metric": "cosine",
    "camera_filter": True,
    "flip": False,
    "rerank": False,
    "selection": "last",
}
"""How the paper scores (method: "Evaluation"); a row says where it was done in another way."""


_ASKED = frozenset({"evaluation.select", "evaluation.camera_filter"})
"""What was asked for; `scores.selection` and `scores.camera_filter` say what was done."""


def _read_scores(recorded: RecordedRun) -> _Scored:
    path = recorded.run / SCORES
    record = read_object(path)
    try:
        if record["version"] != SCORES_VERSION:
            raise ValueError(f"version {record['version']!r}, not {SCORES_VERSION}")
        protocol = record["protocol"]
        data = protocol["data"]
        # `or False`: null and what is not there at all mean that it was not done
        scored = {key: protocol.get(key, usual) or False for key, usual in _PROTOCOL.items()}
        scored["precision"] = protocol.get("precision", "fp32")
        return _Scored(
            recorded,
            data=str(data["name"]),
            settings={
                **{k: v for k, v in settings_of(recorded.preset).items() if k not in _ASKED},
                **{f"scores.{key}": value for key, value in scored.items()},
            },
            counts=(int(data["query_images"]), int(protocol["ranked_gallery_images"])),
            scores=ScoredRun(
                recorded.run,
                recorded.seed,
                _scores(record),
                {str(name): _scores(head) for name, head in record["heads"].items()},
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' can't be read ({type(error).__name__}: {error}); write it again with "
            "`airnet evaluate RUN`"
        ) from None


def _scores(record: dict[str, Any]) -> Scores:
    ranks = {f"rank{rank}": float(record["cmc"][str(rank)]) for rank in (1, 5, 10)}
    return Scores(
        mAP=float(record["mAP"]),
        mAP_trapezoid=float(record["mAP_trapezoid"]),
        mINP=float(record["mINP"]),
        **ranks,
    )


def _newest_of_each_seed(scored: Sequence[_Scored]) -> tuple[list[_Scored], list[NotCounted]]:
    """One run for each setting and seed: two would count one draw of the seed twice."""
    kept: dict[tuple[str, str, int], _Scored] = {}
    older: list[NotCounted] = []
    oldest_first = sorted(
        scored,
        key=lambda each: ((each.scores.run / SCORES).stat().st_mtime_ns, each.scores.run.name),
    )
    for each in oldest_first:
        key = (each.data, identity(each.settings), each.scores.seed)
        if key in kept:
            reason = f"{each.scores.run} is newer, of the same setting and seed"
            older.append(NotCounted(kept[key].scores.run, reason))
        kept[key] = each
    return list(kept.values()), older


def _table(data: str, scored: Sequence[_Scored], against: str | None) -> Table:
    groups: dict[str, list[_Scored]] = {}
    for each in scored:
        groups.setdefault(identity(each.settings), []).append(each)
    members = [sorted(group, key=lambda each: each.scores.seed) for group in groups.values()]
    names = labels([group[0].settings for group in members])
    named = sorted(
        zip(names, members, strict=True),
        key=lambda pair: (VARIANTS.index(str(pair[1][0].settings[VARIANT])), pair[0]),
    )
    return Table(
        data,
        tuple(
            Row(
                label=label,
                settings=group[0].settings,
                runs=tuple(each.scores for each in group),
                whole=_spread_scores(each.scores.whole for each in group),
                heads={
                    head: _spread_scores(each.scores.heads[head] for each in group)
                    for head in group[0].scores.heads
                },
                against=_paired(group, _reference(against, group[0].settings, named)),
                paper=_beside_paper(data, group),
            )
            for label, group in named
        ),
    )


_Named = tuple[str, list[_Scored]]


def _reference(against: str | None, settings: Settings, named: Sequence[_Named]) -> _Named | None:
    """The row that a row of `settings` is held against: by label, or by variant.

    Where nobody asked, only a network is compared with a network: a baseline with another data set
    size or schedule would say nothing about the variant.
    """
    for label, group in named:
        if label == against:
            return label, group
    variant = DEFAULT_AGAINST if against is None else against
    of_variant = [each for each in named if each[1][0].settings[VARIANT] == variant]
    twin = identity({**settings, VARIANT: variant})
    for each in of_variant:
        if identity(each[1][0].settings) == twin:
            return each
    if len(of_variant) != 1:
        return None
    (only,) = of_variant
    differing = differing_keys([settings, only[1][0].settings])
    is_fair = all(key.startswith("model.") for key in differing)
    return only if is_fair or against is not None else None


def _paired(group: Sequence[_Scored], reference: _Named | None) -> Paired | None:
    if reference is None or reference[1] is group:
        return None
    label, others = reference
    by_seed = {each.scores.seed: each.scores.whole for each in others}
    pairs = {
        each.scores.seed: (each.scores.whole, by_seed[each.scores.seed])
        for each in group
        if each.scores.seed in by_seed
    }
    if not pairs:
        return None
    return Paired(label, tuple(pairs), _spread_scores(_less(*pair) for pair in pairs.values()))


def _less(ours: Scores, other: Scores) -> Scores:
    return Scores(*(a - b for a, b in zip(_values(ours), _values(other), strict=True)))


def _values(scores: Scores) -> tuple[float, ...]:
    return tuple(getattr(scores, field.name) for field in fields(Scores))


def _spread_scores(scores: Iterable[Scores]) -> SpreadScores:
    over_runs = zip(*(_values(each) for each in scores), strict=True)
    return SpreadScores(*(spread(values) for values in over_runs))


def _beside_paper(data: str, group: Sequence[_Scored]) -> BesidePaper | None:
    settings = group[0].settings
    figures = paper_figures(
        data=data, variant=str(settings[VARIANT]), backbone=str(settings["model.backbone"])
    )
    if figures is None:
        return None
    whole = _spread_scores(each.scores.whole for each in group)
    return BesidePaper(
        figures=figures,
        mAP_difference=whole.mAP.mean - figures.mAP,
        rank1_difference=whole.rank1.mean - figures.rank1,
        differs=tuple(_differences(data, settings, group[0].counts, figures)),
    )


_NAMES = {"training.train_ids": "identities", "model.init": "initial weights"}
"""What people call a setting whose key does not say it."""

_NO_MATTER = _ASKED | {VARIANT, "data.name", "evaluation.every", "scores.precision"}
"""What is the same by construction, or says nothing about the network that is scored."""


def _differences(
    data: str, settings: Settings, counts: tuple[int, int], figures: PaperFigures
) -> Iterable[Difference]:
    """Where a row is not the paper's recipe, which is the preset named like the data set."""
    recipe = settings_of(load_preset(data)) | {f"scores.{k}": v for k, v in _PROTOCOL.items()}
    recipe["model.backbone"] = figures.backbone
    differing = [key for key in differing_keys([settings, recipe]) if key not in _NO_MATTER]
    is_size_shown = False
    for key in differing:
        if key in ("data.height_px", "data.width_px"):
            if not is_size_shown:
                yield Difference("image", _size(settings), _size(recipe))
            is_size_shown = True
            continue
        name = _NAMES.get(key, key.rpartition(".")[2])
        ours, paper = (
            "all"
            if key == "training.train_ids" and not each.get(key)
            else show_value(each.get(key))
            for each in (settings, recipe)
        )
        yield Difference(name, ours, paper)
    published = TEST_SETS[data]
    for name, found, expected in (
        ("query images", counts[0], published.query_images),
        ("ranked gallery images", counts[1], published.ranked_gallery_images),
    ):
        if found != expected:
            yield Difference(name, f"{found:,}", f"{expected:,}")


def _size(settings: Settings) -> str:
    return f"{settings['data.height_px']} x {settings['data.width_px']}"


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "settings": dict(row.settings),
        "seeds": list(row.seeds),
        "scores": asdict(row.whole),
        "heads": {name: asdict(head) for name, head in row.heads.items()},
        "runs": [
            {"run": str(run.run), "seed": run.seed, "scores": asdict(run.whole)} for run in row.runs
        ],
        "against": None
        if row.against is None
        else {
            "row": row.against.row,
            "seeds": list(row.against.seeds),
            "differences": asdict(row.against.differences),
        },
        "paper": None
        if row.paper is None
        else {
            **asdict(row.paper.figures),
            "mAP_difference": row.paper.mAP_difference,
            "rank1_difference": row.paper.rank1_difference,
            "differs": [asdict(each) for each in row.paper.differs],
        },
    }
