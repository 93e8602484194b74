"""What `airnet visualize` asks of its workflow, and what it prints."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from airnet_cli.cli.app import app
from airnet_cli.workflows import visualize as workflow
from airnet_cli.workflows.runs import Model
from airnet_cli.workflows.visualize import Visualization

runner = CliRunner()


@pytest.fixture
def asked(monkeypatch):
    """The arguments of the workflow, which does nothing here but say what it wrote."""
    kept = {}

    def visualize(options, **request):
        kept.update(vars(options))
        model = Model(Path("runs/new/model.safetensors"), Path("runs/new"), was_chosen=True)
        request["on_model"](model)
        return Visualization(model, (Path("a.png"), Path("b.png")), Path("b.json"), Path("c.html"))

    monkeypatch.setattr(workflow, "visualize", visualize)
    return kept


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gradcam"], {"sheets": ["gradcam"], "images": [], "count": None, "top": 10}),
        (["--gradcam", "a.jpg", "b.jpg"], {"images": [Path("a.jpg"), Path("b.jpg")]}),
        (["a.jpg", "--gradcam"], {"sheets": ["gradcam"], "images": [Path("a.jpg")]}),
        (
            ["--ranking", "--attention", "--gradcam"],
            {"sheets": ["gradcam", "attention", "ranking"]},
        ),
        (["--gradcam", "--compare", "runs/b"], {"compare": Path("runs/b")}),
        (["--gradcam", "--against", "b.jpg"], {"against": Path("b.jpg"), "images": []}),
        (["--ranking", "-k", "5", "--count", "2"], {"top": 5, "count": 2}),
        (["--ranking", "--gallery", "g.npy"], {"gallery": Path("g.npy")}),
        (
            ["--gradcam", "--html", "r.html", "-o", "out"],
            {"html": Path("r.html"), "output": Path("out")},
        ),
        (["--gradcam", "--checkpoint", "runs/a"], {"checkpoint": Path("runs/a")}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_become_a_request(asked, words, expected):
    """Flags may stand before or after the images, and sheets have one order."""
    result = runner.invoke(app, ["visualize", *words])
    assert result.exit_code == 0, result.stderr
    assert {name: asked[name] for name in expected} == expected


def test_stdout_is_what_was_written(asked):
    """One path a line, for pipes; which run was taken goes to stderr."""
    result = runner.invoke(app, ["visualize", "--gradcam"])
    assert result.stdout == "a.png\nb.png\nb.json\nc.html\n"
    assert result.stderr == "looking into the newest finished run: runs/new\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to show: --gradcam, --attention, --ranking"),
        (["--gradcam"], "there is no finished run under 'runs'"),
        (["--gradcam", "gone.jpg"], "image 'gone.jpg' does not exist"),
        (["--ranking", "--against", "a.jpg"], "--against belongs to --gradcam"),
    ],
    ids=["nothing", "no run", "no image", "no gradcam"],
)
def test_errors_are_one_line(tmp_path, monkeypatch, words, message):
    """On stderr, with exit code 1, and nothing on stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AIRNET_RUNS", raising=False)
    result = runner.invoke(app, ["visualize", *words])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_curves_are_of_runs(monkeypatch):
    """`--curves` reads its arguments as run folders, and can't be mixed with what is of images."""
    from airnet_cli.workflows import curves
    from airnet_cli.workflows.curves import DrawnCurves

    asked = {}

    def draw(runs, *, output):
        asked.update(runs=runs, output=output)
        return DrawnCurves(output, ("b is unfinished",))

    monkeypatch.setattr(curves, "draw_curves", draw)
    result = runner.invoke(app, ["visualize", "--curves", "runs/a", "runs/b"])
    assert (result.exit_code, result.stdout) == (0, "curves.png\n")
    assert "b is unfinished" in result.stderr
    assert asked == {"runs": [Path("runs/a"), Path("runs/b")], "output": Path("curves.png")}
    result = runner.invoke(app, ["visualize", "--curves", "runs/a", "--gradcam"])
    assert result.exit_code == 1
    assert "ask for one of them" in result.stderr
