"""Embed very many images in fixed shards, by one process or many, on one machine or many.

Every process is told the same (`ShardJob`), makes the same list of images and finds the same plan;
which shards it then computes is the engine's business, and changes nothing of what comes out:
one process takes them in order, those of torchrun take turns, Ray hands them out (`on_ray.py`).
Nobody waits for anybody. Whoever finds all shards there makes one gallery of them.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from airnet_cli.core.distributed import launched_rank, launched_size, take_device
from airnet_cli.core.progress import Progress, silent
from airnet_cli.core.runtime import (
    choose_device,
)
from airnet_cli.core.shards import (
    Plan,
    find_shard,
    missing_shards,
    publish_whole,
)
from airnet_cli.core.storage import DiskFolder, Folder, is_url
from airnet_cli.errors import UsageError
from airnet_cli.workflows.embed import (
    JSON_VERSION,
)
from airnet_cli.workflows.runs import Model, find_model
from airnet_cli.workflows.shard_worker import Computed, ShardJob, ShardWorker

EngineName = Literal["local", "ray"]


@dataclass(frozen=True, kw_only=True)
class ShardedGallery:
    """What one session did for a gallery of shards."""

    path: str
    plan: Plan
    model: Model
    device: str
    computed: tuple[Computed, ...]
    """One for each shard that this session looked at."""
    missing: int
    """Shards that are not there yet, for others to compute."""
    rows: int | None
    """Of the whole gallery; None where shards are missing."""
    images_skipped: int | None
    """Of the whole gallery: images that have no row."""
    seconds: float

    @property
    def done(self) -> int:
        """Shards that were computed in this session."""
        return sum(each.state == "done" for each in self.computed)

    @property
    def images(self) -> int:
        """That went through in this session."""
        return sum(each.images for each in self.computed)

    @property
    def skipped(self) -> tuple[dict[str, str], ...]:
        """Images that could not be read in this session."""
        return tuple(image for each in self.computed for image in each.skipped)

    @property
    def images_per_second(self) -> float:
        """Over everything in this session, by all its processes."""
        return self.images / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape of `embed --shard-size --json` (docs/formats.md)."""
        described = ("fingerprint", "checkpoint", "run", "heads", "normalize_heads", "flip")
        spent = [asdict(each.seconds) for each in self.computed]
        return {
            "version": JSON_VERSION,
            "gallery": self.path,
            "rows": self.rows,
            "dimensions": self.plan.settings["dimensions"],
            "dtype": self.plan.settings["dtype"],
            **{key: self.plan.record[key] for key in (*described, "precision", "runtime")},
            "shards": {
                "total": self.plan.shards,
                "size": self.plan.shard_size,
                "done": self.done,
                "there": self.plan.shards - self.done - self.missing,
                "missing": self.missing,
            },
            "skipped": list(self.skipped),
            "device": self.device,
            "images": self.images,
            "images_before": sum(each.images_before for each in self.computed),
            "images_per_second": self.images_per_second,
            "seconds": {
                "total": self.seconds,
                **{key: sum(each[key] for each in spent) for key in ("reading", "network")},
                "writing": sum(each["writing"] for each in spent),
            },
        }


def embed_shards(
    job: ShardJob,
    *,
    engine: EngineName,
    on_model: Callable[[Model], None],
    noted: Callable[[str], None],
    progress: Progress = silent,
) -> ShardedGallery:
    """Compute those shards of a job that are not there, or this process's turn of them.

    When all are there, the folder is one gallery. What is stopped, however, goes on with the same
    command.

    Raises:
        UsageError: an output that is a file, or inputs both here and in object storage; a head
            that the network lacks.
        DataError: inputs that are missing or broken, an image that can't be read (unless
            `on_bad_image` is "skip"), a folder that was begun with another job, a damaged shard,
            storage that can't be used.
        CheckpointError: no such run, checkpoint or exported file.
        OutputError: the folder can't be written.
        RuntimeSetupError: this machine lacks the device or the engine.
    """
    _check(job)
    found = find_model(job.model, job.runs_root)
    on_model(found)
    started = time.perf_counter()
    try:
        if engine == "ray":
            worker, device, computed = _by_ray(job, found, progress)
        else:
            worker, device, computed = _here(job, found, noted, progress)
    except KeyboardInterrupt:
        noted("what is done is kept; go on with the same command")
        raise
    folder, plan = worker.folder, worker.plan
    missing = missing_shards(folder, plan)
    rows = skipped = None
    if not missing:
        shards = [shard for n in range(plan.shards) if (shard := find_shard(folder, plan, n))]
        publish_whole(folder, plan, shards)
        remove_leftovers(folder)
        rows, skipped = sum(s.rows for s in shards), sum(s.skipped for s in shards)
    return ShardedGallery(
        path=job.output,
        plan=plan,
        model=found,
        device=device,
        computed=computed,
        missing=len(missing),
        rows=rows,
        images_skipped=skipped,
        seconds=time.perf_counter() - started,
    )


def _here(
    job: ShardJob, model: Model, noted: Callable[[str], None], progress: Progress
) -> tuple[ShardWorker, str, tuple[Computed, ...]]:
    """Compute this process's turn: every n-th shard, where torchrun started n processes."""
    if launched_size() > 1:
        take_device(choose_device(job.device))
    worker = ShardWorker(job, model)
    worker.advise(noted)
    turn = range(launched_rank(), worker.plan.shards, launched_size())
    return worker, worker.device, tuple(worker.compute_all(turn, progress, noted))


def _by_ray(
    job: ShardJob, model: Model, progress: Progress
) -> tuple[ShardWorker, str, tuple[Computed, ...]]:
    """Have the machines of a cluster compute what is missing; this one plans."""
    from airnet_cli.workflows.on_ray import Cluster  # imports the extra `ray`

    with Cluster() as cluster:
        device = cluster.device(job.device)
        planner = ShardWorker(replace(job, device="cpu"), model, device)
        plan, wanted = planner.plan, missing_shards(planner.folder, planner.plan)
        results = cluster.compute(replace(job, device=device), model, plan, wanted)
        return planner, device, tuple(_counting(results, plan, wanted, progress))


def speaks() -> bool:
    """Whether this process is the one that is listened to: of those of torchrun, the first."""
    return launched_rank() == 0


def remove_leftovers(folder: Folder) -> None:
    """Remove what killed processes left behind, when all shards are there."""
    if isinstance(folder, DiskFolder):
        for name in folder.names():
            if LEFTOVER.fullmatch(name):
                left = folder.path / name
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(
                    missing_ok=True
                )


LEFTOVER = re.compile(r"\.{1,2}(shard-[0-9]{5}-of-[0-9]{5}\.|shards\.json\.).*\.part")


def _check(job: ShardJob) -> None:
    if not is_url(job.output) and (job.output.endswith(".npy") or Path(job.output).is_file()):
        raise UsageError(
            f"with --shard-size the output is a folder, not the file '{job.output}'; give one, as "
            "in -o people/"
        )
    kinds = {is_url(place) for place in job.inputs}
    if len(kinds) > 1:
        raise UsageError(
            "some images are in object storage and some are files; embed the two into folders of "
            "their own"
        )


def _counting(
    results: Iterable[Computed], plan: Plan, wanted: Sequence[int], progress: Progress
) -> Iterator[Computed]:
    """Tell progress of shards that others compute."""
    total, done = sum(map(plan.size, wanted)), 0
    progress("embedding", 0, total, "images")
    for computed in results:
        done += plan.size(computed.number)
        progress("embedding", done, total, "images")
        yield computed
