"""Scores of many runs side by side: one row per setting, mean and deviation over its seeds.

Runs of one setting differ in their seed alone. Each data set has its own table. Beside a row stand
the paper's figures, where it has some for the data set and variant, with what differs from its
recipe; and the differences to another row, paired by seed: two runs of one seed share their
identities and batches, so their difference has less noise than each of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airnet_cli.config.presets import load_preset
from airnet_cli.core.paper import TEST_SETS, paper_figures
from airnet_cli.errors import CheckpointError, UsageError
from airnet_cli.workflows.runs import (
    SCORES,
    VARIANT,
    VARIANTS,
    NotCounted,
    RecordedRun,
    Settings,
    Spread,
    differing_keys,
    find_runs,
    labels,
    read_object,
    settings_key,
    settings_of,
    show_value,
    spread,
)

JSON_VERSION = 1
SCORES_VERSION = 1
"""The version of scores.json that is read."""

Scores = Mapping[str, float]
"""mAP, mAP_trapezoid, mINP, rank1, rank5 and rank10 of a run or of one head in it; fractions."""

Spreads = Mapping[str, Spread]
"""The same six over runs."""


@dataclass(frozen=True)
class RunScores:
    """The scores of one run."""

    run: str
    seed: int
    scores: Scores


@dataclass(frozen=True)
class Paired:
    """What a row has more than another one: differences of runs with the same seed."""

    row: str
    """The label of the other row."""
    seeds: tuple[int, ...]
    """Those that both rows have."""
    differences: Spreads


@dataclass(frozen=True)
class Difference:
    """A setting in which a row and the paper's recipe are not the same."""

    setting: str
    ours: str
    paper: str


@dataclass(frozen=True)
class BesidePaper:
    """The paper's figures for a row, and why the two are not the same experiment."""

    variant: str
    backbone: str
    mAP: float
    rank1: float
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
    """Of the preset, and how it was scored."""
    seeds: tuple[int, ...]
    scores: Spreads
    """Of the whole embedding."""
    heads: Mapping[str, Spreads]
    runs: tuple[RunScores, ...]
    """One for each seed."""
    against: Paired | None
    """None in the row that others are compared with, and where no seed is shared."""
    paper: BesidePaper | None


@dataclass(frozen=True)
class Table:
    """The rows of one data set, in the order of the paper's Table 3."""

    data: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """What `airnet compare` shows; its fields are the keys of `--json`."""

    tables: tuple[Table, ...]
    not_counted: tuple[NotCounted, ...]
    """Runs that are unfinished, broken, or older than another of the same setting and seed."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `compare --json` (docs/formats.md); fractions, not percent."""
        return {"version": JSON_VERSION, **asdict(self)}


def compare(paths: Sequence[Path], *, against: str | None = None) -> Comparison:
    """Read the runs at `paths` (run folders, or folders of them) and put them side by side.

    `against` is the label of a row, or a variant: each row is then compared with the row of that
    variant with otherwise equal settings, or with the only one. None: the variant `baseline`,
    where it was trained in the same way.

    Raises:
        CheckpointError: a path does not exist or has no run.
        UsageError: `against` is no row.
    """
    found, not_counted = find_runs(paths)
    scored: list[_Scored] = []
    for run in found:
        if not run.is_finished:
            not_counted.append(NotCounted(str(run.run), run.state()))
            continue
        try:
            scored.append(_read_scores(run))
        except CheckpointError as error:
            not_counted.append(NotCounted(str(run.run), str(error)))
    scored, older = _newest_of_each_seed(scored)
    tables = tuple(
        _table(data, [run for run in scored if run.data == data], against)
        for data in sorted({run.data for run in scored})
    )
    rows = [row for table in tables for row in table.rows]
    names = [name for row in rows for name in (row.label, row.settings[VARIANT])]
    if against is not None and rows and against not in names:
        known = "; ".join(dict.fromkeys(row.label for row in rows))
        raise UsageError(f"--against '{against}' is no row; there are: {known}")
    return Comparison(tables, (*not_counted, *older))


@dataclass(frozen=True)
class _Scored:
    """A finished run with all that its row needs."""

    run: Path
    seed: int
    data: str
    settings: Settings
    test_images: tuple[int, int]
    """Query images and ranked gallery images."""
    whole: Scores
    heads: Mapping[str, Scores]


_PAPER_SCORING: dict[str, object] = {
    "metric": "cosine",
    "camera_filter": True,
    "flip": False,
    "rerank": False,
    "selection": "last",
    "precision": "fp32",
}
"""How the paper scores (method: "Evaluation")."""

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
        settings = {k: v for k, v in settings_of(recorded.preset).items() if k not in _ASKED}
        for key, usual in _PAPER_SCORING.items():
            # `or False`: null means that it was not done
            settings[f"scores.{key}"] = protocol.get(key, usual) or False
        return _Scored(
            recorded.run,
            recorded.seed,
            data=str(data["name"]),
            settings=settings,
            test_images=(int(data["query_images"]), int(protocol["ranked_gallery_images"])),
            whole=_scores(record),
            heads={str(name): _scores(head) for name, head in record["heads"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' can't be read ({type(error).__name__}: {error}); write it again with "
            "`airnet evaluate RUN`"
        ) from None


def _scores(record: Mapping[str, Any]) -> Scores:
    scores = {key: float(record[key]) for key in ("mAP", "mAP_trapezoid", "mINP")}
    return scores | {f"rank{rank}": float(record["cmc"][str(rank)]) for rank in (1, 5, 10)}


def _newest_of_each_seed(
    scored: Sequence[_Scored],
) -> tuple[list[_Scored], list[NotCounted]]:
    """One run for each setting and seed: two would count one draw of the seed twice."""
    kept: dict[tuple[str, str, int], _Scored] = {}
    older: list[NotCounted] = []
    for run in sorted(scored, key=lambda run: ((run.run / SCORES).stat().st_mtime_ns, run.run)):
        key = (run.data, settings_key(run.settings), run.seed)
        if key in kept:
            reason = f"{run.run} is newer, of the same setting and seed"
            older.append(NotCounted(str(kept[key].run), reason))
        kept[key] = run
    return list(kept.values()), older


_Groups = Mapping[str, Sequence[_Scored]]
"""The runs of each row, by its label."""


def _table(data: str, scored: Sequence[_Scored], against: str | None) -> Table:
    by_setting: dict[str, list[_Scored]] = {}
    for run in sorted(scored, key=lambda run: run.seed):
        by_setting.setdefault(settings_key(run.settings), []).append(run)
    names = labels([runs[0].settings for runs in by_setting.values()])
    groups = dict(zip(names, by_setting.values(), strict=True))
    rows = []
    for label, runs in groups.items():
        whole = _spreads([run.whole for run in runs])
        rows.append(
            Row(
                label=label,
                settings=runs[0].settings,
                seeds=tuple(run.seed for run in runs),
                scores=whole,
                heads={name: _spreads([run.heads[name] for run in runs]) for name in runs[0].heads},
                runs=tuple(RunScores(str(run.run), run.seed, run.whole) for run in runs),
                against=_paired(label, _other_row(against, runs[0].settings, groups), groups),
                paper=_beside_paper(runs[0], whole),
            )
        )
    rows.sort(key=lambda row: (VARIANTS.index(str(row.settings[VARIANT])), row.label))
    return Table(data, tuple(rows))


def _other_row(against: str | None, settings: Settings, groups: _Groups) -> str | None:
    """The label of the row that a row of `settings` is compared with; None if there is none.

    Where nobody asked, all but the variant must be equal: a baseline with another data set size or
    schedule would say nothing about the variant.
    """
    if against in groups:
        return against
    variant = against or "baseline"
    of_variant = [label for label in groups if groups[label][0].settings[VARIANT] == variant]
    wanted = settings_key({**settings, VARIANT: variant})
    for label in of_variant:
        if settings_key(groups[label][0].settings) == wanted:
            return label
    return of_variant[0] if against is not None and len(of_variant) == 1 else None


def _paired(label: str, other: str | None, groups: _Groups) -> Paired | None:
    if other is None or other == label:
        return None
    others = {run.seed: run.whole for run in groups[other]}
    differences = {
        run.seed: {key: score - others[run.seed][key] for key, score in run.whole.items()}
        for run in groups[label]
        if run.seed in others
    }
    if not differences:
        return None
    return Paired(other, tuple(differences), _spreads(list(differences.values())))


def _spreads(scores: Sequence[Scores]) -> Spreads:
    return {key: spread([each[key] for each in scores]) for key in scores[0]}


_NOT_COMPARED = _ASKED | {VARIANT, "data.name", "evaluation.every", "scores.precision"}
"""What is the same by construction, or says nothing about the network that is scored."""


def _beside_paper(run: _Scored, whole: Spreads) -> BesidePaper | None:
    """The paper's recipe is the preset named like the data set."""
    figures = paper_figures(
        data=run.data,
        variant=str(run.settings[VARIANT]),
        backbone=str(run.settings["model.backbone"]),
    )
    if figures is None:
        return None
    query_images, gallery_images = run.test_images
    ours = {**run.settings, "query images": query_images, "ranked gallery images": gallery_images}
    query_images, gallery_images = TEST_SETS[run.data]
    paper = {
        **settings_of(load_preset(run.data)),
        **{f"scores.{key}": value for key, value in _PAPER_SCORING.items()},
        "model.backbone": figures.backbone,
        "query images": query_images,
        "ranked gallery images": gallery_images,
    }
    return BesidePaper(
        **asdict(figures),
        mAP_difference=whole["mAP"].mean - figures.mAP,
        rank1_difference=whole["rank1"].mean - figures.rank1,
        differs=tuple(
            Difference(key, show_value(ours.get(key)), show_value(paper.get(key)))
            for key in differing_keys([ours, paper])
            if key not in _NOT_COMPARED
        ),
    )
