"""What is written where: tables and JSON on stdout, notes and progress on stderr."""

import json

import pytest

from airnet_cli.cli import output
from airnet_cli.cli.output import (
    note,
    percent,
    print_json,
    print_table,
    print_text,
    progress_bars,
)


def test_table(capsys):
    """Numbers stand to the right, words to the left; nothing is cut and no cell is markup."""
    wide = "x" * 300
    print_table(["set", "images"], [["train", 12936], ["[red]query", 3368], [wide, 1]])
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines() if line.strip()]
    assert err == ""
    assert lines[0].split() == ["set", "images"]
    assert lines[2].startswith("train ")
    assert lines[2].endswith(" 12,936")
    assert lines[3].startswith("[red]query ")
    assert lines[4].startswith(wide)
    assert len({len(line) for line in lines[2:]}) == 1, "numbers end in one column"


def test_json_is_what_a_program_reads(capsys):
    """Text stays readable, and what JSON can't hold is refused."""
    print_json({"mAP": 0.893, "name": "Zürich"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"mAP": 0.893, "name": "Zürich"}
    assert "Zürich" in out
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"mAP": float("nan")})


def test_note_leaves_stdout_alone(capsys):
    """A pipe gets data only."""
    note("took the newest run")
    print_text("data")
    assert capsys.readouterr() == ("data\n", "took the newest run\n")


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0, "0.0"), (0.8934, "89.3"), (1, "100.0"), (0.89349, "89.3")]
)
def test_percent(fraction, expected):
    """Papers print one digit."""
    assert percent(fraction) == expected


def test_progress_in_a_log_is_a_line_now_and_then(capsys, monkeypatch):
    """Where stderr is no terminal, a stage writes a line each half minute."""
    seconds = 0.0
    monkeypatch.setattr(output.time, "monotonic", lambda: seconds)
    with progress_bars() as progress:
        for done in range(0, 101, 5):
            seconds = float(done)
            progress("reading", done, 100, "images")
    assert capsys.readouterr() == (
        "",
        "reading: 30/100 images, 1 images/s, 1:10 left\n"
        "reading: 60/100 images, 1 images/s, 0:40 left\n"
        "reading: 90/100 images, 1 images/s, 0:10 left\n",
    )


def test_progress_on_a_terminal_is_a_bar(capsys, monkeypatch):
    """A terminal gets a bar; a stage may come again, and its total may be unknown."""
    monkeypatch.setattr(output.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bars() as progress:
        for _ in range(2):
            for done in (0, 5, 10):
                progress("reading", done, 10, "images")
        progress("writing", 3, None, "rows")
    out, err = capsys.readouterr()
    assert out == ""
    assert "writing" in err
    assert "3" in err
