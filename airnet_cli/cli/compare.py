"""`airnet compare`: runs side by side, over seeds, beside the paper and against a baseline."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airnet_cli.cli.options import DEFAULT_RUNS_ROOT, JsonOption, RunsRootOption
from airnet_cli.cli.output import (
    markdown_table,
    percent,
    print_json,
    print_table,
    print_text,
    signed_percent,
)
from airnet_cli.errors import UsageError

if TYPE_CHECKING:
    from airnet_cli.core.spread import Spread
    from airnet_cli.workflows.compare import Comparison, Row, SpreadScores, Table

WIDTH = 80
"""Columns of a terminal that titles fit into; Rich fits the tables."""


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Run folders, or folders of run folders; all runs under --runs-root if not given.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="VARIANT|ROW",
            help="Show differences to this row, paired by seed; the baseline's if not given.",
        ),
    ] = None,
    details: Annotated[
        bool,
        typer.Option(
            "--details", help="Show mAP_trapezoid, mINP, rank-5 and rank-10 too, and each head."
        ),
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print tables for a Markdown document.")
    ] = False,
    runs_root: RunsRootOption = DEFAULT_RUNS_ROOT,
    json: JsonOption = False,
) -> None:
    """Put runs side by side: means over seeds, and the paper.

    Example: airnet compare runs --against baseline --markdown
    """
    if markdown and json:
        raise UsageError("--markdown and --json are two ways to print; give one of them")
    from airnet_cli.workflows import compare as workflow

    show_comparison(
        workflow.compare(runs or [runs_root], against=against),
        json=json,
        markdown=markdown,
        details=details,
    )


def show_comparison(
    comparison: "Comparison", *, json: bool, markdown: bool = False, details: bool = False
) -> None:
    """Print it on stdout: JSON, Markdown, or tables that fit a terminal of 80 columns."""
    if json:
        print_json(comparison.to_dict())
        return
    parts = list(_parts(comparison, details))
    for number, (title, columns, rows) in enumerate(parts):
        if number:
            print_text("")
        if markdown:
            print_text(f"{title}\n\n{markdown_table(columns, rows)}")
        else:
            print_text(textwrap.fill(title, WIDTH))
            print_table(columns, rows)


_Part = tuple[str, Sequence[str], list[Sequence[str]]]
"""A table's title, columns and rows."""


def _parts(comparison: "Comparison", details: bool) -> Iterator[_Part]:
    for table in comparison.tables:
        yield _scores(table)
        if details:
            yield _more_scores(table)
            yield _heads(table)
        if any(row.paper is not None for row in table.rows):
            yield _beside_paper(table)
            differences = _what_differs(table)
            if differences[2]:
                yield differences
    if comparison.not_counted:
        rows = [(str(each.run), each.reason) for each in comparison.not_counted]
        yield "Not counted", ("run", "why"), [*rows]


def _scores(table: "Table") -> _Part:
    """mAP and rank-1, and what each row has more than the one it is held against."""
    title = f"{table.data}: percent, mean ± standard deviation over seeds"
    columns = ["", "seeds", "mAP", "rank-1"]
    if table.against:
        columns += ["mAP diff.", "rank-1 diff."]
        others = " or ".join(table.against)
        title += f"; differences to {others}, paired by seed"
    rows: list[Sequence[str]] = []
    for row in table.rows:
        cells = [row.label, str(len(row.runs))]
        cells += [_mean(score, len(row.runs)) for score in (row.whole.mAP, row.whole.rank1)]
        if table.against:
            cells += _against(row)
        rows.append(cells)
    return title, columns, rows


def _against(row: "Row") -> list[str]:
    if row.against is None:
        return ["", ""]
    differences = row.against.differences
    pairs = len(row.against.seeds)
    cells = [_mean(each, pairs, signed=True) for each in (differences.mAP, differences.rank1)]
    # Fewer pairs than seeds: the number is not that of the row's means.
    return cells if pairs == len(row.runs) else [f"{cell} ({pairs})" for cell in cells]


def _more_scores(table: "Table") -> _Part:
    columns = ["", "mAP_trapezoid", "mINP", "rank-5", "rank-10"]
    rows: list[Sequence[str]] = []
    for row in table.rows:
        whole = row.whole
        more = (whole.mAP_trapezoid, whole.mINP, whole.rank5, whole.rank10)
        rows.append([row.label, *(_mean(score, len(row.runs)) for score in more)])
    return f"{table.data}: more scores", columns, rows


def _heads(table: "Table") -> _Part:
    columns = ["", "head alone", "mAP", "rank-1"]

    def cells(row: "Row", head: str, scores: "SpreadScores") -> Sequence[str]:
        seeds = len(row.runs)
        return row.label, head, _mean(scores.mAP, seeds), _mean(scores.rank1, seeds)

    rows = [cells(row, *head) for row in table.rows for head in row.heads.items()]
    return f"{table.data}: each head alone", columns, rows


def _beside_paper(table: "Table") -> _Part:
    columns = ["", "mAP", "paper", "difference", "rank-1", "paper", "difference"]
    rows: list[Sequence[str]] = []
    for row in table.rows:
        if row.paper is None:
            continue
        rows.append(
            (
                row.label,
                percent(row.whole.mAP.mean),
                percent(row.paper.figures.mAP),
                signed_percent(row.paper.mAP_difference),
                percent(row.whole.rank1.mean),
                percent(row.paper.figures.rank1),
                signed_percent(row.paper.rank1_difference),
            )
        )
    return f"{table.data}: beside the paper (Tables 1 and 3)", columns, rows


def _what_differs(table: "Table") -> _Part:
    rows: list[Sequence[str]] = [(each.setting, each.ours, each.paper) for each in table.differs()]
    return f"{table.data}: what differs from the paper", ("setting", "here", "paper"), rows


def _mean(score: "Spread", runs: int, *, signed: bool = False) -> str:
    """Mean ± standard deviation; a single run has none."""
    mean = signed_percent(score.mean) if signed else percent(score.mean)
    return mean if runs == 1 else f"{mean} ± {percent(score.std)}"
