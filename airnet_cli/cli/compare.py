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
    from airnet_cli.workflows.compare import Comparison, Row, Table
    from airnet_cli.workflows.runs import Spread

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


_Part = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table's title, columns and rows."""


def _parts(comparison: "Comparison", details: bool) -> Iterator[_Part]:
    for table in comparison.tables:
        yield _scores(table)
        if details:
            yield _more_scores(table)
            yield _heads(table)
        yield from _beside_paper(table)
    if comparison.not_counted:
        rows = [(each.run, each.reason) for each in comparison.not_counted]
        yield "Not counted", ("run", "why"), rows


def _scores(table: "Table") -> _Part:
    """mAP and rank-1, and their differences to those of another row."""
    title = f"{table.data}: percent, mean ± standard deviation over seeds"
    columns = ["", "seeds", "mAP", "rank-1"]
    others = dict.fromkeys(row.against.row for row in table.rows if row.against is not None)
    if others:
        columns += ["mAP diff.", "rank-1 diff."]
        title += f"; differences to {' or '.join(others)}, paired by seed"
    rows: list[Sequence[str]] = []
    for row in table.rows:
        seeds = len(row.seeds)
        cells = [row.label, str(seeds)]
        cells += [_mean(row.scores[key], seeds) for key in ("mAP", "rank1")]
        rows.append(cells + (_differences(row) if others else []))
    return title, columns, rows


def _differences(row: "Row") -> list[str]:
    if row.against is None:
        return ["", ""]
    pairs = len(row.against.seeds)
    cells = [_mean(row.against.differences[key], pairs, signed=True) for key in ("mAP", "rank1")]
    # Fewer pairs than seeds: the number is not that of the row's means.
    return cells if pairs == len(row.seeds) else [f"{cell} ({pairs})" for cell in cells]


def _more_scores(table: "Table") -> _Part:
    columns = ("", "mAP_trapezoid", "mINP", "rank-5", "rank-10")
    keys = ("mAP_trapezoid", "mINP", "rank5", "rank10")
    rows = [
        (row.label, *(_mean(row.scores[key], len(row.seeds)) for key in keys)) for row in table.rows
    ]
    return f"{table.data}: more scores", columns, rows


def _heads(table: "Table") -> _Part:
    rows = [
        (row.label, name, *(_mean(head[key], len(row.seeds)) for key in ("mAP", "rank1")))
        for row in table.rows
        for name, head in row.heads.items()
    ]
    return f"{table.data}: each head alone", ("", "head alone", "mAP", "rank-1"), rows


def _beside_paper(table: "Table") -> Iterator[_Part]:
    """The paper's scores, and what differs from its recipe, if anything does."""
    columns = ("", "mAP", "paper", "difference", "rank-1", "paper", "difference")
    rows = [
        (
            row.label,
            percent(row.scores["mAP"].mean),
            percent(row.paper.mAP),
            signed_percent(row.paper.mAP_difference),
            percent(row.scores["rank1"].mean),
            percent(row.paper.rank1),
            signed_percent(row.paper.rank1_difference),
        )
        for row in table.rows
        if row.paper is not None
    ]
    if rows:
        yield f"{table.data}: beside the paper (Tables 1 and 3)", columns, rows
    differences = dict.fromkeys(
        (each.setting, each.ours, each.paper)
        for row in table.rows
        if row.paper is not None
        for each in row.paper.differs
    )
    if differences:
        title = f"{table.data}: what differs from the paper"
        yield title, ("setting", "here", "paper"), list(differences)


def _mean(score: "Spread", runs: int, *, signed: bool = False) -> str:
    """Mean ± standard deviation; a single run has none."""
    mean = signed_percent(score.mean) if signed else percent(score.mean)
    return mean if runs == 1 else f"{mean} ± {percent(score.std)}"
