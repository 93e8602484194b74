"""`make soak`, its load part: does memory stay flat when there is much to do?

    python -m benchmarks.load OUT [--images 100000] [--queries 1000] [--query-rows 11659]

`airnet embed` of 100,000 images, `airnet match` of 1,000 queries against them, and `airnet
evaluate` of random features at MSMT17's size, each as a process of its own whose memory is sampled.
Into OUT: the samples (`memory.csv`), what became of them (`load.json`), and a plot (`memory.svg`)
where matplotlib is installed. Exits with 1 where it was too much. Linux only: it reads /proc.

The images are 1,000 drawn JPEGs with many names each (hard links), 64 x 32, so that reading is real
and drawing takes no hours; the network is untrained. Neither changes how memory behaves.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from airnet_cli.config.presets import load_preset
from airnet_cli.core.checkpoint import write_checkpoint
from airnet_cli.workflows.build import build_network

DRAWN = 1000
HEIGHT_PX, WIDTH_PX = 64, 32
SECONDS_BETWEEN_SAMPLES = 0.5
MIB = 2**20

MAY_GROW_MIB = 96.0
"""What the last quarter of `embed` may have more than the second: a sync's worth of rows (64 MiB),
and some noise; with fewer than some 10,000 images starting takes longer than a quarter."""
MOST_MIB = {"match": 1024.0, "evaluate": 1536.0}
"""What one-time work may allocate: far less than its matrices would take."""

MSMT17_QUERIES, MSMT17_GALLERY, MSMT17_IDS, MSMT17_CAMERAS = 11_659, 82_161, 3_060, 15
DIMENSIONS = 2048


@dataclass(frozen=True)
class Sample:
    """Memory of a process and its children at one moment."""

    seconds: float
    processes: int
    anonymous_mib: float
    """What programs allocated: it can't be given back by the system."""
    mapped_mib: float
    """Pages of files, the gallery's among them: the system takes them back when it needs to."""

    @property
    def resident_mib(self) -> float:
        """Both; pages that two processes share count for each."""
        return self.anonymous_mib + self.mapped_mib


@dataclass(frozen=True)
class Load:
    """What a command took."""

    what: str
    items: int
    unit: str
    seconds: float
    peak_resident_mib: float
    peak_anonymous_mib: float
    second_quarter_mib: float
    """Anonymous memory, mean over the second quarter of the time, when all has been started."""
    last_quarter_mib: float
    is_bounded: bool
    """It did not grow (`embed`), or stayed below `MOST_MIB`."""


def main() -> None:
    """Run the three loads and write what was seen."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--query-rows", type=int, default=MSMT17_QUERIES)
    parser.add_argument("--gallery-rows", type=int, default=MSMT17_GALLERY)
    wanted = parser.parse_args()
    out: Path = wanted.out
    out.mkdir(parents=True, exist_ok=True)
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "queries").mkdir(parents=True)

    write_model(work / "model.safetensors")
    draw_images(work / "images", wanted.images)
    draw_images(work / "queries", wanted.queries, seed=1)
    samples: dict[str, list[Sample]] = {}
    loads = []

    def measure(what: str, items: int, unit: str, *words: str) -> None:
        print(f"{what}: {items:,} {unit}", flush=True)
        samples[what] = watch(words, out / f"{what}.out")
        loads.append(summarize(what, items, unit, samples[what]))
        print(json.dumps(asdict(loads[-1])), flush=True)
        write_samples(out / "memory.csv", samples)

    model = ("--checkpoint", str(work / "model.safetensors"))
    gallery = str(work / "gallery.npy")
    images = (str(work / "images"), "-o", gallery)
    measure("embed", wanted.images, "images", "embed", *images, *model, "--json")
    queries = (str(work / "queries"), "--gallery", gallery, *model)
    measure("match", wanted.queries, "queries", "match", *queries, "--json")
    for name in ("images", "queries", "gallery.npy"):
        remove(work / name)
    rows = {"query": wanted.query_rows, "gallery": wanted.gallery_rows}
    for seed, (name, count) in enumerate(rows.items()):
        write_features(work / f"{name}.npy", count, seed=seed)
    words = ("--query", str(work / "query.npy"), "--gallery", str(work / "gallery.npy"), "--json")
    measure("evaluate", wanted.query_rows, "queries", "evaluate", *words)
    shutil.rmtree(work)

    written = {"machine": machine(), "loads": [asdict(load) for load in loads]}
    (out / "load.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    plot(out / "memory.svg", samples)
    if not all(load.is_bounded for load in loads):
        sys.exit("more memory than there should be: see load.json")


def write_model(path: Path) -> None:
    """An untrained AIR-Net of the light kind."""
    size = [f"data.height_px={HEIGHT_PX}", f"data.width_px={WIDTH_PX}"]
    preset = load_preset("demo", [*size, "model.backbone=mobilenet_v2"])
    torch.manual_seed(1)
    write_checkpoint(
        path,
        build_network(preset, identities=4),
        preset=preset.model_dump(mode="json"),
        height_px=HEIGHT_PX,
        width_px=WIDTH_PX,
        identities=(1, 2, 3, 4),
        training={"data": "demo", "finished_epochs": 0},
    )


def draw_images(folder: Path, count: int, *, seed: int = 0) -> None:
    """`count` names in folders of a thousand, for up to `DRAWN` different pictures."""
    random = np.random.default_rng(seed)
    drawn: list[Path] = []
    for number in range(count):
        path = folder / f"{number // 1000:04}" / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < DRAWN:
            coarse = random.integers(0, 256, (8, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((2 * WIDTH_PX, 2 * HEIGHT_PX))
            picture.save(path, quality=85)
            drawn.append(path)
        else:
            try:
                path.hardlink_to(drawn[number % DRAWN])
            except OSError:  # a file system without links
                shutil.copyfile(drawn[number % DRAWN], path)


def write_features(path: Path, rows: int, *, seed: int) -> None:
    """Random unit vectors around one centre per identity, and who was seen by which camera."""
    centres = np.random.default_rng(7).standard_normal((MSMT17_IDS, DIMENSIONS), dtype=np.float32)
    random = np.random.default_rng(seed)
    ids = np.concatenate([np.arange(rows) % MSMT17_IDS])
    cameras = random.integers(0, MSMT17_CAMERAS, rows)
    matrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, DIMENSIONS))
    for first in range(0, rows, 4096):
        part = ids[first : first + 4096]
        noise = random.standard_normal((len(part), DIMENSIONS), dtype=np.float32)
        matrix[first : first + 4096] = centres[part] + 4 * noise
    matrix.flush()
    lines = "".join(f"{i},{c}\n" for i, c in zip(ids + 1, cameras, strict=True))
    path.with_suffix(".csv").write_text("person_id,camera_id\n" + lines)


def watch(words: Sequence[str], output: Path) -> list[Sample]:
    """Run `airnet` with `words`; its memory, and that of its children, from start to end."""
    samples = []
    started = time.monotonic()
    with (
        output.open("w") as stdout,
        subprocess.Popen([sys.executable, "-m", "airnet_cli", *words], stdout=stdout) as process,
    ):
        for count in itertools.count(1):
            try:
                due = started + count * SECONDS_BETWEEN_SAMPLES
                process.wait(max(0.0, due - time.monotonic()))
                break
            except subprocess.TimeoutExpired:
                samples.append(sample(process.pid, time.monotonic() - started))
    if process.returncode:
        sys.exit(f"airnet {' '.join(words)}: exit code {process.returncode}")
    return samples


def sample(pid: int, seconds: float) -> Sample:
    """What /proc says now; a process that ends meanwhile counts nothing."""
    anonymous = mapped = processes = 0
    for each in family(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text()
            kib = {
                line.split(":")[0]: int(line.split()[1])
                for line in status.splitlines()
                if line.startswith("Rss")
            }
            anonymous += kib.get("RssAnon", 0)
            mapped += kib.get("RssFile", 0) + kib.get("RssShmem", 0)
            processes += 1
    return Sample(seconds, processes, anonymous / 1024, mapped / 1024)


def family(pid: int) -> Iterator[int]:
    """`pid` and all below it."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from family(int(child))


def summarize(what: str, items: int, unit: str, samples: Sequence[Sample]) -> Load:
    """Peaks, and whether they are as they should be."""
    quarter = max(1, len(samples) // 4)

    def mean(part: Sequence[Sample]) -> float:
        return sum(each.anonymous_mib for each in part) / max(1, len(part))

    early, late = mean(samples[quarter : 2 * quarter]), mean(samples[-quarter:])
    peak = max(each.anonymous_mib for each in samples)
    bound = MOST_MIB.get(what)
    return Load(
        what=what,
        items=items,
        unit=unit,
        seconds=samples[-1].seconds,
        peak_resident_mib=max(each.resident_mib for each in samples),
        peak_anonymous_mib=peak,
        second_quarter_mib=early,
        last_quarter_mib=late,
        is_bounded=late <= early + MAY_GROW_MIB if bound is None else peak <= bound,
    )


def write_samples(path: Path, samples: dict[str, list[Sample]]) -> None:
    """One row for each sample."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["command", "seconds", "processes", "anonymous_mib", "mapped_mib"])
        for what, each in samples.items():
            for s in each:
                numbers = (f"{s.anonymous_mib:.1f}", f"{s.mapped_mib:.1f}")
                writer.writerow([what, f"{s.seconds:.1f}", s.processes, *numbers])


def plot(path: Path, samples: dict[str, list[Sample]]) -> None:
    """Memory over time, one panel a command."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    figure = Figure(figsize=(4 * len(samples), 3), layout="constrained")
    panels = figure.subplots(1, len(samples), squeeze=False)[0]
    for panel, (what, each) in zip(panels, samples.items(), strict=True):
        seconds = [s.seconds for s in each]
        panel.plot(seconds, [s.resident_mib for s in each], color="tab:gray", label="resident")
        panel.plot(seconds, [s.anonymous_mib for s in each], color="tab:blue", label="allocated")
        panel.set(title=f"airnet {what}", xlabel="seconds", ylabel="MiB", ylim=(0, None))
        panel.legend(loc="lower right", frameon=False)
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def machine() -> dict[str, object]:
    """What the figures hang on."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def remove(path: Path) -> None:
    """A file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


if __name__ == "__main__":
    main()
