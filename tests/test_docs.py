"""Documents in step with the program: commands, options, links, the library example, the formats.

What is shown in a code block must work as it stands there; what is mentioned in a line of text must
exist. Shapes of JSON in docs/formats.md are marked (`<!-- shape: NAME -->`) and compared, key by
key, with what is written.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from airnet_cli.cli.app import app
from airnet_cli.config.presets import load_preset, preset_names

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    *(PROJECT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))
]
PAGES += sorted((PROJECT / "docs").rglob("*.md"))
README = (PROJECT / "README.md").read_text(encoding="utf-8")
FORMATS = (PROJECT / "docs" / "formats.md").read_text(encoding="utf-8")
PROGRAM = typer.main.get_command(app)

runner = CliRunner()


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shell_lines(text: str) -> Iterator[list[str]]:
    """The words of each command in the `sh` blocks of a page, without what is piped or redirected.

    Comments are dropped.
    """
    for block in code_blocks(text, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            ends = [i for i, word in enumerate(words) if word in (">", "|", "&&", ";")]
            if words:
                yield words[: min(ends, default=len(words))]


def mentioned(text: str) -> list[list[str]]:
    """The words of each `airnet ...` or `make ...` that stands in a line of text."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [span for span in re.findall(r"`([^`\n]+)`", text) if " " in span]
    return [span.split() for span in spans if span.split()[0] in ("airnet", "make")]


def find_command(words: list[str]):
    """The command that `words` (after `airnet`) name, and the words left for it."""
    command, rest = PROGRAM, list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


def unknown_in(words: list[str]) -> list[str]:
    """Commands and options among `words` (after `airnet`) that do not exist."""
    command, rest = find_command(words)
    options = {"-h", "--help"} | {name for each in command.params for name in each.opts}
    unknown = [word for word in rest if word.startswith("-") and word not in options]
    if hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        unknown.append(rest[0])
    return unknown


def leaf_commands(command=PROGRAM, words: tuple[str, ...] = ()) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield " ".join(words)
        return
    for name, each in inner.items():
        yield from leaf_commands(each, (*words, name))


def make_targets() -> set[str]:
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):.*## ", text, flags=re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


SHOWN = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)}")
    for page in PAGES
    for words in shell_lines(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("words", [each for each in SHOWN if each.values[0][0] == "airnet"])
def test_a_command_that_is_shown_is_accepted(words, monkeypatch):
    """The command line parses it whole, and a preset that it names takes its --set values."""
    monkeypatch.delenv("AIRNET_DATA", raising=False)
    monkeypatch.delenv("AIRNET_RUNS", raising=False)
    command, rest = find_command(words[1:])
    assert not hasattr(command, "commands"), "this is a group of commands, not a command"
    values = command.make_context(words[-1], rest).params
    if values.get("preset") in preset_names():
        load_preset(values["preset"], values["set_values"] or [])


@pytest.mark.parametrize("words", [each for each in SHOWN if each.values[0][0] == "make"])
def test_a_target_that_is_shown_exists(words):
    """`make TARGET` in a code block is a target of the Makefile; a variable may follow."""
    assert {word for word in words[1:] if "=" not in word} <= make_targets()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_is_mentioned_exists(page):
    """Commands, options and targets in lines of text exist."""
    wrong = []
    for words in mentioned(page.read_text(encoding="utf-8")):
        if words[0] == "airnet":
            unknown = unknown_in(words[1:])
        else:
            unknown = [word for word in words[1:] if "=" not in word and word not in make_targets()]
        wrong += [f"{' '.join(words)}: {word}" for word in unknown]
    assert wrong == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train --preset demo --dry-run", []),
        ("train --epochs 3", ["--epochs"]),
        ("prepare-data duke", ["duke"]),
        ("frobnicate", ["frobnicate"]),
        ("prepare-data", []),
    ],
)
def test_the_reader_of_commands_sees(words, expected):
    """What does not exist is found; what exists is let through."""
    assert unknown_in(words.split()) == expected


@pytest.mark.parametrize("command", list(leaf_commands()))
def test_every_command_is_in_the_readme(command):
    """A new command without a word about it is a red test."""
    shown = [" ".join(words) for words in [*shell_lines(README), *mentioned(README)]]
    assert any(f"{line} ".startswith(f"airnet {command} ") for line in shown)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_in_the_readme(preset):
    """The table of presets has them all."""
    assert f"`{preset}`" in README


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_every_target_is_in_contributing(target):
    """The table of make targets has them all."""
    contributing = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert target == "help" or f"`make {target}`" in contributing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page):
    """The file is there, and so is the heading."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        if not target.exists() or (heading and heading not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)
def test_the_readme_leads_to_every_page(page):
    """No page that nobody finds."""
    assert f"]({name_of(page)}" in README


def test_pages_that_the_code_names_exist():
    """`docs/method.md` in a docstring is a file, and 'method: "Evaluation"' one of its headings."""
    sources = [*(PROJECT / "airnet_cli").rglob("*.py"), *(PROJECT / "presets").glob("*.toml")]
    headings = anchors(PROJECT / "docs" / "method.md")
    for source in sources:
        text = source.read_text(encoding="utf-8")
        for page in re.findall(r"docs/[a-z_]+\.md", text):
            assert (PROJECT / page).is_file(), f"{source}: {page}"
        for quoted in re.findall(r"\(method: ([^)]+)\)", text):
            for heading in re.findall(r'"([^"]+)"', quoted):
                assert heading.lower().replace(" ", "-") in headings, f"{source}: {heading}"


def test_the_file_tree_is_that_of_the_project():
    """Each line of the tree in the README names what is there, and no folder of code is missing."""
    (tree,) = (block for block in code_blocks(README, "text") if block.startswith("airnet_cli/"))
    shown: dict[int, str] = {}
    paths = set()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        shown[depth] = name
        paths.add("".join(shown[level] for level in range(depth)) + name)
    assert [path for path in sorted(paths) if not (PROJECT / path).exists()] == []
    packages = {file.parent for file in (PROJECT / "airnet_cli").rglob("__init__.py")}
    folders = {f"{name_of(folder)}/" for folder in packages if folder.name != "readers"}
    assert folders <= paths


def test_the_library_example_runs(tiny_run, tmp_path, monkeypatch):
    """The Python of the README embeds an image with a trained network, as it stands there."""
    import numpy as np
    from PIL import Image

    (tmp_path / "model.safetensors").symlink_to(tiny_run / "model.safetensors")
    for name, colour in (("person.jpg", "teal"), ("another.jpg", "maroon")):
        Image.new("RGB", (50, 120), colour).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    (example,) = code_blocks(README, "python")
    exec(example, names)
    embedder, embeddings = names["embedder"], names["embeddings"]
    assert embeddings.shape == (2, embedder.dimensions)
    assert np.isfinite(embeddings).all()
    assert np.abs(embeddings).sum() > 0


def documented(shape: str) -> object:
    """The JSON of docs/formats.md under this mark; `scores` in it stands for all of scores.json."""
    mark = re.escape(f"<!-- shape: {shape} -->")
    found = re.search(rf"{mark}\n```json\n(.*?)^```$", FORMATS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/formats.md shows no shape {shape}"
    return json.loads(found[1], object_hook=_whole_scores)


def _whole_scores(value: dict[str, object]) -> dict[str, object]:
    if value.get("scores") == {"version": 1}:
        return value | {"scores": documented("scores.json")}
    return value


def keys(value: object, above: str = "") -> set[str]:
    """The dotted keys of a JSON value; of a list, those of its first entry."""
    if isinstance(value, list):
        return keys(value[0], f"{above}[]") if value else set()
    if not isinstance(value, dict):
        return set()
    below = [{f"{above}.{key}"} | keys(each, f"{above}.{key}") for key, each in value.items()]
    return set().union(*below)


def printed(*words: object) -> object:
    result = runner.invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("shape", ["preset.json", "scores.json"])
def test_documented_files_of_a_run(shape, tiny_run):
    """The JSON files of a run have the documented keys."""
    assert keys(json.loads((tiny_run / shape).read_text())) == keys(documented(shape))


def test_documented_log(tiny_run):
    """Lines of log.jsonl have the documented keys, the last one with scores."""
    lines = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    expected = keys(documented("log.jsonl"))
    assert keys(lines[-1]) == expected
    assert keys(lines[0]) == {key for key in expected if not key.startswith(".scores")}


def test_documented_checkpoint(tiny_run):
    """Metadata of the checkpoint and the training state are those of the documented tables."""
    from safetensors import safe_open

    with safe_open(tiny_run / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    table = FORMATS.partition("| metadata key |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row[:40])}
    assert set(metadata) == named
    for shape in ("preprocessing", "training"):
        assert keys(json.loads(metadata[shape])) == keys(documented(shape))
    with safe_open(tiny_run / "training-state.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"format", "format_version", "finished_epochs"}
        assert file.metadata()["format"] == "airnet-training-state"


def test_documented_files_are_those_of_the_run_folder(tiny_run):
    """The table of the run folder names every file of a run."""
    for file in tiny_run.iterdir():
        assert f"| `{file.name}` |" in FORMATS or file.name.startswith("events.out.tfevents")


def test_documented_dry_run():
    """`train --dry-run --json` prints the documented keys."""
    shown = printed("train", "--preset", "demo", "--dry-run", "--json")
    assert keys(shown) == keys(documented("dry-run"))


def test_documented_plan(tmp_path):
    """`train --variants ... --dry-run --json` prints the documented keys."""
    words = ["-p", "demo", "--variants", "airnet", "--runs-root", tmp_path, "--dry-run", "--json"]
    assert keys(printed("train", *words)) == keys(documented("plan"))


def test_documented_prepare_data(tmp_path):
    """`prepare-data csv --json` prints the documented keys, and the manifest has its own."""
    from PIL import Image

    rows = [("a.png", 1, 1, "train"), ("b.png", 2, 1, "query"), ("c.png", 2, 2, "gallery")]
    for path, *_ in rows:
        Image.new("RGB", (8, 16)).save(tmp_path / path)
    lines = [
        ",".join(map(str, row)) for row in [("path", "person_id", "camera_id", "split"), *rows]
    ]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    words = ["--data-root", tmp_path / "data", "--workers", "0", "--json"]
    shown = printed("prepare-data", "csv", tmp_path / "own.csv", *words)
    assert keys(shown) == keys(documented("prepare-data"))
    manifest = (tmp_path / "data" / "own" / "manifest.jsonl").read_text().splitlines()
    for line, mark in zip(manifest[:2], ("| header key |", "| image key |"), strict=True):
        table = FORMATS.partition(mark)[2].partition("\n\n")[0]
        named = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
        assert sorted(json.loads(line)) == sorted(name for names in named for name in names)


@pytest.fixture
def features(tmp_path) -> tuple[Path, Path]:
    """Q.npy and G.npy with their tables: two queries, three gallery images."""
    import numpy as np

    for name, camera, people in (("Q", 1, [1, 2]), ("G", 2, [2, 1, 0])):
        np.save(tmp_path / f"{name}.npy", np.eye(3, 4, dtype=np.float32)[: len(people)])
        rows = "".join(f"{person},{camera}\n" for person in people)
        (tmp_path / f"{name}.csv").write_text(f"person_id,camera_id\n{rows}")
    return tmp_path / "Q.npy", tmp_path / "G.npy"


def test_documented_scores_of_features(features):
    """`evaluate --query --gallery --json` prints the documented keys, without heads."""
    query, gallery = features
    shown = printed("evaluate", "--query", query, "--gallery", gallery, "--json")
    assert keys(shown) == keys(documented("features"))


def test_documented_comparison(write_run):
    """`compare --json` prints the documented keys; those that are left out there are named."""
    for variant in ("baseline", "airnet"):
        write_run(variant, f"model.variant={variant}", "training.epochs=8")
    stopped = write_run("stopped", scores=None)
    shown = printed("compare", stopped.parent, "--json")
    shown["tables"][0]["rows"].reverse()  # airnet, which has a row that it is held against
    (table,) = shown["tables"]
    expected = keys(documented("compare"))
    row = ".tables[].rows[]"
    found = {
        key
        for key in keys(shown)
        if not key.startswith(f"{row}.settings.")
        and (
            key.startswith(f"{row}.paper")
            or not re.search(r"trapezoid|mINP|\.rank|\.(A2|I)\b", key)
        )
    }
    assert found == {key for key in expected if not key.startswith(f"{row}.settings.")}
    assert set(documented("compare")["tables"][0]["rows"][0]["settings"]) <= set(
        table["rows"][0]["settings"]
    )
    for name in ("mAP_trapezoid", "mINP", "rank1", "rank5", "rank10"):
        assert f"`{name}`" in FORMATS.partition("<!-- shape: compare -->")[2]
        assert table["rows"][0]["scores"][name].keys() == {"mean", "std"}


def test_documented_parts(untrained_run, tmp_path, monkeypatch):
    """`embed --shard-size --json`, a part's record and `gallery compact` have the documented
    keys.
    """
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 16)).save("a.png")
    Path("b.png").write_bytes(b"<html>")
    words = ["a.png", "b.png", "-o", "people", "--shard-size", "1", "--on-bad-image", "skip"]
    shown = printed("embed", *words, "--checkpoint", untrained_run, "--workers", "0", "--json")
    assert keys(shown) == keys(documented("embed in shards"))
    record = json.loads(Path("people/000001.json").read_text())
    assert keys(record) == keys(documented("part"))
    assert keys(printed("gallery", "compact", "people", "--json")) == keys(documented("compact"))


def test_documented_export(exported_run):
    """`export --json` prints the documented keys, and the file has the documented metadata."""
    import onnx

    assert keys(exported_run.to_dict()) == keys(documented("export"))
    table = FORMATS.partition("| exported key |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row[:32])}
    metadata = {each.key: each.value for each in onnx.load(exported_run.path).metadata_props}
    assert {*metadata, "weights_sha256"} == named
    for name in json.loads(metadata["preprocessing"]):
        assert f"`{name}`" in table
    for file in ("model.onnx", "model.xml", "model.bin"):
        assert f"`{file}`" in FORMATS


def test_documented_summary_of_training(features):
    """`train --json` prints the documented keys (those of its scores have a test of their own)."""
    from airnet_cli.workflows.evaluate import evaluate_features
    from airnet_cli.workflows.train import TrainedRun, summarize

    query, gallery = features
    evaluation = evaluate_features(
        query=query, gallery=gallery, metric="cosine", camera_filter=True
    )
    shown = summarize((TrainedRun(Path("runs/demo"), evaluation, seconds=1.0),)).to_dict()
    scores = ".runs[].scores."
    without_scores = {key for key in keys(shown) if not key.startswith(scores)}
    expected = {key for key in keys(documented("train")) if not key.startswith(scores)}
    assert without_scores == expected
