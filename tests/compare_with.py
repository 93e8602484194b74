"""Compare an older revision with the working tree: `make compare-with REV=99c5700`.

Both revisions run the same command lines, one after the other, with one thread, on data that the
older one prepared. Compared is what a user sees: losses, scores, embeddings, matches, exported
networks, presets and the keys of `--json`. Each check prints one line: same, DIFFERENT or skipped
with its reason. The script ends with 1 where anything differs. It takes a few minutes.
"""

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parents[1]
GOLDEN = Path(os.environ.get("AIRNET_GOLDEN", PROJECT.parent / "shared" / "golden")) / "cases"

DELETED_SETTINGS = {  # only the older revision has them; no preset used them
    "model.attention",
    "model.activation",
    "training.freeze_epochs",
    "training.interaction_init",
    "training.interaction_lr_factor",
}
ALLOWED_KEYS = {  # of `--json`, by command: only one revision has them, and why
    "match": {"index": "indexes were deleted", "kernel": "int8's kernels were deleted"},
}

EXACT = 1e-9
"""Scores are equal up to this: sums may be added up in another order."""
CLOSE = 1e-6
"""Relative for losses, of 1 - cosine for embeddings; closer cosines count as ties."""
TIE_ROOM = 0.05
"""How much scores may differ where a right and a wrong answer tie."""

DRIVER = """
import contextlib, io, json, sys, traceback
from airnet_cli.cli.app import main

results, place = [], sys.argv[1]
for words in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["airnet", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = "traceback"
            traceback.print_exc()
    results.append(dict(words=words, code=code, out=out.getvalue(), err=err.getvalue()))
with open(place, "w") as file:
    json.dump(results, file)
"""
"""Runs command lines in one process: importing torch for each would take most of the time."""


class SkippedError(Exception):
    """A check can't be made; the message says why."""


class Revision:
    """One revision's source, and the folder in which it writes."""

    def __init__(self, name: str, source: Path, work: Path) -> None:
        self.name, self.source, self.work = name, source, work
        self.own = Path(name)  # relative to `work`, where all commands run
        (work / self.own).mkdir()

    def run(self, *lines: list[Any]) -> list[dict[str, Any]]:
        """Run command lines one after the other in one new process, in the folder `work`."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AIRNET_")}
        environment |= {"PYTHONPATH": str(self.source), "OMP_NUM_THREADS": "1"}
        results = self.work / "results.json"
        results.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, results],
            input=json.dumps([[str(word) for word in words] for words in lines]),
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
        )
        if not results.exists():
            raise SystemExit(f"the {self.name} revision does not start:\n{done.stderr[-2000:]}")
        return [{"revision": self.name, **each} for each in json.loads(results.read_text())]


def printed(result: dict[str, Any]) -> Any:
    """The JSON that a command printed; a check that needs an unknown option is skipped."""
    if missing := re.search("No such (option|command).*", result["err"]):
        raise SkippedError(f"the {result['revision']} revision: {missing[0]}")
    if result["code"] != 0:
        shown = " ".join(result["words"][:3])
        raise ValueError(f"{result['revision']}, {shown}: {result['err'][-400:]}")
    return json.loads(result["out"])


class Report:
    """Prints the checks and counts differences."""

    def __init__(self) -> None:
        self.different = 0

    def check(self, name: str, compare: Callable[[], str | None]) -> None:
        """`compare` returns None where both are the same, else what differs.

        A text that begins with "same" is a remark on what is the same.
        """
        try:
            found = compare() or "same"
        except SkippedError as reason:
            found = f"skipped ({reason})"
        except (ValueError, KeyError, OSError) as error:
            found = f"{type(error).__name__}: {error}"
        if not found.startswith(("same", "skipped")):
            self.different += 1
            found = f"DIFFERENT {found}"
        print(f"{name:<44} {found}", flush=True)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values of a JSON document that contain no others, by dotted key and place in lists."""
    match value:
        case dict() if value:
            items = [(f"{path}.{key}", each) for key, each in value.items()]
        case list() if value:
            items = [(f"{path}[{place}]", each) for place, each in enumerate(value)]
        case _:
            return {path.lstrip("."): value}
    return {key: leaf for name, each in items for key, leaf in leaves(each, name).items()}


def shape_difference(command: str, old: Any, new: Any) -> str | None:
    """The keys that only one of two JSON documents has and that `ALLOWED_KEYS` does not name."""
    left, right = ({re.sub(r"\[\d+\]", "[]", key) for key in leaves(each)} for each in (old, new))
    allowed = tuple(ALLOWED_KEYS.get(command, ()))
    found = [key for key in sorted(left ^ right) if re.split(r"[.\[]", key)[0] not in allowed]
    sides = {True: "only older", False: "only newer"}
    return ", ".join(f"{sides[key in left]}: {key}" for key in found) or None


def value_difference(
    old: Any, new: Any, *, relative: float = 0.0, absolute: float = EXACT
) -> str | None:
    """The first value that differs; keys that only one has are `shape_difference`'s."""
    left, right = leaves(old), leaves(new)
    for key in (key for key in left if key in right):
        a, b = left[key], right[key]
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        if a != b and not (numbers and math.isclose(a, b, rel_tol=relative, abs_tol=absolute)):
            return f"{key}: {a} {b}"
    return None


def scores_difference(
    old: dict[str, Any], new: dict[str, Any], *, tie: bool, room: float = EXACT
) -> str | None:
    """Compare what two `evaluate --json` scored: to `room`, or to `TIE_ROOM` where answers tie."""
    old, new = (
        {key: each for key, each in printed(result).items() if key != "protocol"}
        for result in (old, new)
    )
    found = value_difference(old, new)
    room = TIE_ROOM if tie else room
    if found and not value_difference(old, new, absolute=room):
        return f"same but for {'ties' if tie else 'rounding'} ({found})"
    return found


def has_tie(query: Path, gallery: Path, metric: str = "cosine") -> bool:
    """Whether a right and a wrong answer of a query are equally near, in float64."""
    left, right = (np.load(path).astype(np.float64) for path in (query, gallery))
    if metric == "cosine":
        left, right = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (left, right))
        distances = 1 - left @ right.T
    else:
        squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
        distances = squares / max(float(np.abs(squares).max()), 1e-30)
    query_ids, gallery_ids = (
        np.array([int(row["person_id"]) for row in table(path.with_suffix(".csv"))])
        for path in (query, gallery)
    )
    order = np.argsort(distances, axis=1)
    is_right = gallery_ids[order] == query_ids[:, None]
    gaps = np.diff(np.take_along_axis(distances, order, axis=1), axis=1)
    return bool(((gaps <= CLOSE) & (is_right[:, 1:] != is_right[:, :-1])).any())


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cosine_difference(old: np.ndarray, new: np.ndarray) -> str | None:
    """Compare vectors (N, D) row by row."""
    if old.shape != new.shape:
        return f"{old.shape} {new.shape}"
    old, new = old.astype(np.float64), new.astype(np.float64)
    lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    smallest = float(((old * new).sum(1) / lengths).min())
    return None if smallest >= 1 - CLOSE else f"smallest cosine {smallest:.9f}"


def write_tables(work: Path) -> None:
    """Small data sets as tables of the demo's images: one batch of each preset, and a small one."""
    lines = [json.loads(line) for line in (work / "data/demo/manifest.jsonl").open()][1:]
    people: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if line["split"] == "train":
            people.setdefault(line["person_id"], []).append(line)
    tested = sorted({line["person_id"] for line in lines if line["split"] == "query"})[:10]
    others = [line for line in lines if line["split"] != "train"]
    scored = [line for line in others if line["person_id"] in tested]
    scored += [line for line in others if line["person_id"] == 0][:20]
    few = [line for line in scored if line["person_id"] in tested[:2]]
    for name, identities, images in (("batch8", 8, 4), ("batch16", 16, 4), ("small", 24, 8)):
        chosen = [line for each in sorted(people)[:identities] for line in people[each][:images]]
        chosen += scored if name == "small" else few
        with (work / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(chosen)


def write_weights(work: Path) -> None:
    """Initial weights of both presets' backbones, by torchvision, from one seed."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    for name in ("resnet18", "mobilenet_v2"):
        torch.manual_seed(1)
        network = getattr(torchvision.models, name)()
        save_file(network.state_dict(), work / f"{name}.safetensors")


def prepare_csv(name: str, root: Path) -> list[Any]:
    """The command that prepares one of the tables."""
    words = ["prepare-data", "csv", f"{name}.csv", "--images", "data/demo/images"]
    return [*words, "--data-root", root, "--workers", 0, "--json"]


def training(revision: Revision, preset: str, data: str, weights: str, epochs: int) -> list[Any]:
    """The command that trains on one of the tables into `REVISION/DATA/`."""
    words = ["train", "--preset", preset, "--device", "cpu", "--seed", 1, "--json"]
    values = [f"data.name={data}", f"model.init={weights}.safetensors", f"training.epochs={epochs}"]
    values += ["training.workers=0", "training.precision=fp32", "evaluation.every=0"]
    values += ["data.height_px=64", "data.width_px=32"]  # market1501-cpu has four times as many
    overrides = [word for value in values for word in ("--set", value)]
    return [*words, *overrides, "--data-root", "data", "--runs-root", revision.own / data]


def losses(work: Path, revision: Revision, data: str) -> list[Any]:
    """The losses in the log of a training: an epoch of those tables is one step."""
    log = next((work / revision.own / data).glob("*/log.jsonl"))
    lines = [json.loads(line) for line in log.open()]
    return [{key: line[key] for key in ("epoch", "loss", "heads")} for line in lines]


def compare_prepared(report: Report, old: Revision, new: Revision, work: Path) -> None:
    """Data sets: the older revision's are what everything else uses."""
    old.run(["prepare-data", "demo", "--seed", 1, "--no-verify", "--data-root", "data"])
    write_tables(work)
    tables = ("small", "batch8", "batch16")
    older = old.run(*(prepare_csv(name, Path("data")) for name in tables))[0]
    newer = new.run(prepare_csv("small", new.own / "data"))[0]

    def lines(root: Path) -> list[Any]:
        return [json.loads(line) for line in (work / root / "small/manifest.jsonl").open()][1:]

    both = Path("data"), new.own / "data"
    report.check("prepare-data: manifest", lambda: value_difference(*map(lines, both)))
    report.check(
        "prepare-data: JSON",
        lambda: (
            shape_difference("prepare-data", printed(older), printed(newer))
            or value_difference(printed(older)["counts"], printed(newer)["counts"])
        ),
    )


def compare_losses(report: Report, old: Revision, new: Revision, work: Path) -> None:
    """The first 20 steps of both presets that are meant for CPUs."""
    write_weights(work)
    steps = (("demo", "batch8", "resnet18"), ("market1501-cpu", "batch16", "mobilenet_v2"))
    trained = [
        revision.run(*(training(revision, *each, 20) for each in steps)) for revision in (old, new)
    ]
    for place, (preset, data, _) in enumerate(steps):

        def compare(place: int = place, data: str = data) -> str | None:
            shapes = shape_difference("train", *(printed(each[place]) for each in trained))
            left, right = (losses(work, revision, data) for revision in (old, new))
            return shapes or value_difference(left, right, relative=CLOSE)

        report.check(f"losses of 20 steps: {preset}", compare)


def golden_commands(work: Path) -> Iterator[tuple[str, list[Any], Path, str]]:
    """Write the golden cases as features of other tools; yield name, command, query, metric."""
    for case in sorted(GOLDEN.iterdir()):
        labels = np.load(case / "labels.npz")
        folder = work / "golden" / case.name
        folder.mkdir(parents=True)
        for kind in ("query", "gallery"):
            shutil.copyfile(case / f"{kind}_features.npy", folder / f"{kind}.npy")
            columns = [labels[f"{kind}_ids"].tolist(), labels[f"{kind}_cams"].tolist()]
            with (folder / f"{kind}.csv").open("w", newline="") as file:
                rows = zip(*columns, strict=True)
                csv.writer(file).writerows([("person_id", "camera_id"), *rows])
        features = ["--query", folder / "query.npy", "--gallery", folder / "gallery.npy"]
        for asked in ("cosine", "cosine --rerank", "euclidean"):
            metric, *more = asked.split()
            words = ["evaluate", *features, "--metric", metric, *more, "--json"]
            yield f"{case.name} {asked}", words, folder / "query.npy", metric


def compare_golden(report: Report, old: Revision, new: Revision, work: Path) -> None:
    """Scores of all golden cases, plain and re-ranked."""
    if not GOLDEN.is_dir():
        print(f"{'golden cases':<44} skipped (no folder {GOLDEN}; set AIRNET_GOLDEN)")
        return
    cases = list(golden_commands(work))
    both = [revision.run(*(words for _, words, _, _ in cases)) for revision in (old, new)]
    for (name, words, query, metric), left, right in zip(cases, *both, strict=True):
        tie = has_tie(query, query.with_name("gallery.npy"), metric)
        room = CLOSE if "--rerank" in words else EXACT
        report.check(
            f"golden {name}",
            lambda a=left, b=right, tie=tie, room=room: scores_difference(a, b, tie=tie, room=room),
        )


def compare_run(report: Report, old: Revision, new: Revision, work: Path) -> None:
    """Evaluate, embed, match and export with one run that the older revision trained."""
    old.run(training(old, "demo", "small", "resnet18", 4))
    run = next((work / old.own / "small").glob("*/model.safetensors")).parent
    results = {}
    for revision in (old, new):
        own = revision.own / "run" / run.name
        shutil.copytree(run, work / own)  # a copy each: commands write into the run
        model, where = ["--checkpoint", own], ["--data-root", "data", "--device", "cpu"]
        if "--model" in revision.run(["embed", "--help"])[0]["out"]:
            model = ["--model", own]
        embedding = ["embed", *model, *where, "--data", "small", "--workers", 0, "--json"]
        query, gallery = revision.own / "query.npy", revision.own / "gallery.npy"
        match = ["match", query, "--gallery", gallery, "--json"]
        exported = ["export", own, "--images", "data/demo/images/query", "--data-root", "data"]
        commands = {
            "evaluate": ["evaluate", own, *where, "--workers", 0, "--json"],
            "evaluate --rerank": ["evaluate", own, *where, "--workers", 0, "--rerank", "--json"],
            "embed query": [*embedding, "--split", "query", "-o", query],
            "embed gallery": [*embedding, "--split", "gallery", "-o", gallery],
            "match": match,
            "match --rerank": [*match, "--rerank"],
            "match --where": [*match, "--where", "camera_id!=3"],
            "export": [*exported, "-o", revision.own / "model.onnx", "--json"],
        }
        results[revision.name] = dict(zip(commands, revision.run(*commands.values()), strict=True))
    older, newer = results.values()
    for name in older:
        command, left, right = name.split()[0], older[name], newer[name]
        report.check(
            f"{name}: keys of JSON",
            lambda c=command, a=left, b=right: shape_difference(c, printed(a), printed(b)),
        )
        if command == "evaluate":
            tie = has_tie(work / old.own / "query.npy", work / old.own / "gallery.npy")
            report.check(
                f"{name}: scores",
                lambda a=left, b=right, tie=tie: scores_difference(a, b, tie=tie),
            )
        if command == "match":
            report.check(f"{name}: matches", lambda a=left, b=right: match_difference(a, b))
    for kind in ("query", "gallery"):
        paths = [work / revision.own / f"{kind}.npy" for revision in (old, new)]
        report.check(
            f"embed {kind}: table",
            lambda p=paths: value_difference(*(table(path.with_suffix(".csv")) for path in p)),
        )
        report.check(
            f"embed {kind}: vectors", lambda p=paths: cosine_difference(*(np.load(q) for q in p))
        )
    report.check("export: vectors of both files", lambda: exported_difference(work, old, new))


def match_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Matches of each query: the same rows, but for ties, and scores to `CLOSE`."""
    for left, right in zip(printed(old)["queries"], printed(new)["queries"], strict=True):
        for a, b in zip(left["matches"], right["matches"], strict=True):
            is_near = abs(a["score"] - b["score"]) <= CLOSE
            if not is_near or a.get("verdict") != b.get("verdict"):
                return f"rank {a['rank']} of {left['query']}: {a['score']} {b['score']}"
            is_tie = sum(abs(a["score"] - c["score"]) <= CLOSE for c in left["matches"]) > 1
            if a["path"] != b["path"] and not is_tie:
                return f"rank {a['rank']} of {left['query']}: {a['path']} {b['path']}"
    return None


def exported_difference(work: Path, old: Revision, new: Revision) -> str | None:
    """Run both exported files on the same pixels."""
    try:
        import onnxruntime
    except ImportError:
        raise SkippedError("no onnxruntime: pip install 'airnet[onnx]'") from None
    vectors = []
    for revision in (old, new):
        path = work / revision.own / "model.onnx"
        if not path.exists():
            raise SkippedError(f"the {revision.name} revision exported nothing")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        pixels = np.random.default_rng(1).integers(0, 256, (4, *given.shape[1:]), dtype=np.uint8)
        vectors.append(session.run(None, {given.name: pixels})[0])
    return cosine_difference(*vectors)


def compare_presets(report: Report, old: Revision, new: Revision) -> None:
    """Values of every preset, as written and as resolved."""
    listed = [printed(revision.run(["presets", "--json"])[0]) for revision in (old, new)]
    report.check("presets", lambda: preset_difference(*listed))
    names = list(listed[0]["presets"])
    words = [["presets", name] for name in names]
    words += [["train", "--preset", name, "--dry-run", "--json"] for name in names]
    both = list(zip(old.run(*words), new.run(*words), strict=True))
    for name, written, resolved in zip(names, both, both[len(names) :], strict=False):
        report.check(
            f"presets {name}",
            lambda both=written: value_difference(*(tomllib.loads(each["out"]) for each in both)),
        )
        report.check(
            f"presets {name}, resolved",
            lambda both=resolved: preset_difference(*(printed(each)["preset"] for each in both)),
        )


def preset_difference(old: Any, new: Any) -> str | None:
    """Values that differ, or keys that the newer one lacks and that were not deleted."""
    missing = leaves(old).keys() - leaves(new).keys()
    found = value_difference(old, new) or ", ".join(missing - DELETED_SETTINGS)
    return found or (f"same (deleted: {', '.join(sorted(missing))})" if missing else None)


@contextmanager
def unpacked(revision: str) -> Iterator[Path]:
    """A temporary folder with the files of `revision`, and room for what commands write."""
    packed = subprocess.run(
        ["git", "archive", revision], cwd=PROJECT, capture_output=True, check=False
    )
    if packed.returncode:
        raise SystemExit(f"git knows no revision '{revision}': {packed.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory(prefix="airnet-compare-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(Path(folder) / "source", filter="data")
        (Path(folder) / "work").mkdir()
        yield Path(folder)


def main() -> None:
    """Compare the revision that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: make compare-with REV=<revision>")
    report = Report()
    with unpacked(sys.argv[1]) as folder:
        work = folder / "work"
        old, new = Revision("older", folder / "source", work), Revision("newer", PROJECT, work)
        compare_presets(report, old, new)
        compare_prepared(report, old, new, work)
        compare_golden(report, old, new, work)
        compare_losses(report, old, new, work)
        compare_run(report, old, new, work)
    print(f"{report.different} differences")
    raise SystemExit(1 if report.different else 0)


if __name__ == "__main__":
    main()
