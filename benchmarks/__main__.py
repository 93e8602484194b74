"""`make bench`: each path of airnet beside its limit or its obvious implementation, in one run.

`python -m benchmarks` measures in full; `--quick` takes a minute or two, `--only NAME` measures
one path. Prints a table, then one JSON line with sizes, versions, cores and all figures. It prints
and does not judge: what a ratio should be stands beside it. docs/performance.md explains the rows.
"""

import argparse
import importlib
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
import torch

import airnet_cli
from benchmarks.measure import Row, Sizes, to_json

PATHS = (
    "pooling",
    "startup",
    "train_step",
    "embed",
    "runtimes",
    "match",
    "rerank",
    "evaluate",
)


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen measurements and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=PATHS, help="measure this path alone")
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute or two")
    chosen = parser.parse_args(arguments)
    sizes = Sizes("quick" if chosen.quick else "full")
    torch.manual_seed(0)
    rows: list[Row] = []
    for path in chosen.only or PATHS:
        for row in importlib.import_module(f"benchmarks.{path}").rows(sizes):
            rows.append(row)
            print(_lines(row), flush=True)
    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "airnet": airnet_cli.__version__,
    }
    print(to_json(rows, sizes, machine))


def _processor() -> str:
    """The processor's name; as much of it as the system tells."""
    told = Path("/proc/cpuinfo")
    names = [] if not told.exists() else re.findall(r"model name\s*: (.+)", told.read_text())
    return names[0] if names else platform.processor() or "unknown"


def _lines(row: Row) -> str:
    words = (
        f"{row.path}: {row.case}\n"
        f"    ours {_seconds(row.seconds)}, {row.rival} {_seconds(row.rival_seconds)}\n"
        f"    {row.ratio_is} = {row.ratio:.2f}, to reach: {row.target}"
    )
    if row.memory_mb is not None:
        words += f"\n    memory + {row.memory_mb:,.0f} MiB"
        if row.memory_target_mb is not None:
            words += f", to reach: at most {row.memory_target_mb:,.0f}"
    return words + (f"\n    {row.note}" if row.note else "")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
