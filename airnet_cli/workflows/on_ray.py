"""Shards by Ray Data: it hands out their numbers, and hands them out again when a machine is lost.

What goes through Ray are numbers and counts; images and shards do not: the machines read and write
them themselves, in a folder that they share or in object storage. Needs `airnet[ray]`.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from airnet_cli.core.runtime import DeviceName
from airnet_cli.core.shards import Plan
from airnet_cli.errors import AirnetError, DataError, RuntimeSetupError
from airnet_cli.workflows.embed import Seconds
from airnet_cli.workflows.memory import keep_freed_memory
from airnet_cli.workflows.runs import Model, find_model
from airnet_cli.workflows.shard_worker import Computed, ShardJob, ShardWorker


class Cluster:
    """The Ray cluster that RAY_ADDRESS names, or one of this machine alone, for the block."""

    def __init__(self) -> None:
        """Nothing is connected yet.

        Raises:
            RuntimeSetupError: Ray is not installed.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or else it reports to its makers
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # lines that are no one's business
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise RuntimeSetupError(
                f"--engine ray needs Ray, and it is not here ({error}); pip install 'airnet[ray]', "
                "or leave --engine out"
            ) from None
        self._ray: Any = ray

    def __enter__(self) -> "Cluster":
        """Connect, or start one.

        Raises:
            RuntimeSetupError: there is none at RAY_ADDRESS.
        """
        address = os.environ.get("RAY_ADDRESS")
        own: dict[str, Any] = {} if address else {"include_dashboard": False}
        if not address or address.startswith("127."):  # or else it looks for itself on the net
            own["_node_ip_address"] = (address or "127.0.0.1").partition(":")[0]
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **own,
            )
        except Exception as error:  # of many kinds
            said = " ".join(str(error).split())[:200]
            raise RuntimeSetupError(
                f"no Ray cluster at RAY_ADDRESS={address} ({said}); start one with `ray start`, or "
                "unset it to use this machine alone"
            ) from None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end us with another code
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = self._ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect; what computes is ended."""
        self._ray.shutdown()

    def device(self, asked: DeviceName) -> DeviceName:
        """What the machines compute on; `auto` is their GPUs, where there are any.

        Raises:
            RuntimeSetupError: GPUs were asked for by name and there are none.
        """
        has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        if asked == "auto":
            return "cuda" if has_gpus else "cpu"
        if asked == "cuda" and not has_gpus:
            raise RuntimeSetupError("device 'cuda': the machines of this Ray cluster have no GPU")
        return asked

    def compute(
        self, job: ShardJob, model: Model, plan: Plan, numbers: Sequence[int]
    ) -> Iterator[Computed]:
        """Compute shards in as many processes as the machines have room for.

        Raises:
            AirnetError: the first thing that went wrong, when the other shards are done.
        """
        if not numbers:
            return
        on_gpus = job.device == "cuda"
        numbered = self._ray.data.from_items(
            [{"number": number} for number in numbers], override_num_blocks=len(numbers)
        )
        results = numbered.map(
            _Worker,
            fn_constructor_args=(job.anywhere(model),),
            concurrency=(1, len(numbers)),
            num_cpus=1 if on_gpus else self._processors(plan.threads),
            num_gpus=1 if on_gpus else None,
        )
        wrong = ""
        try:
            for row in results.iter_rows():
                if row["wrong"]:
                    wrong = wrong or row["wrong"]
                else:
                    yield _computed(row)
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[-1][:300]
            raise DataError(
                f"Ray gave up: {said}; what is done is kept: start again with the same command"
            ) from None
        if wrong:
            raise DataError(wrong)

    def _processors(self, threads: int) -> int:
        """How many processors a process is given: its threads', if a machine has as many."""
        machines = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
        return max(1, min(threads, int(max(machines, default=1))))


class _Worker:
    """A process of the cluster: it prepares with the first shard, then computes one by one."""

    def __init__(self, job: ShardJob) -> None:
        keep_freed_memory()  # Ray started this process for these shards alone
        self._job = job
        self._worker: ShardWorker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Compute the shard `number`; what goes wrong is told in `wrong`, not raised.

        Ray would take what is raised for a broken machine, and show its traceback.
        """
        number = int(row["number"])
        try:
            if self._worker is None:
                model = find_model(self._job.model, self._job.runs_root)
                self._worker = ShardWorker(self._job, model)
            return _row(self._worker.compute(number))
        except AirnetError as error:
            return _row(Computed(number=number, state="there")) | {"wrong": str(error)}


def _row(computed: Computed) -> dict[str, Any]:
    """What goes through Ray: plain columns of one type each."""
    return {
        "number": computed.number,
        "state": computed.state,
        "images": computed.images,
        "images_before": computed.images_before,
        "skipped": [[image["path"], image["reason"]] for image in computed.skipped] or [["", ""]],
        "seconds": [
            computed.seconds.total,
            computed.seconds.reading,
            computed.seconds.network,
            computed.seconds.writing,
        ],
        "wrong": "",
    }


def _computed(row: dict[str, Any]) -> Computed:
    total, reading, network, writing = map(float, row["seconds"])
    return Computed(
        number=int(row["number"]),
        state=row["state"],
        images=int(row["images"]),
        images_before=int(row["images_before"]),
        skipped=tuple(
            {"path": str(path), "reason": str(reason)} for path, reason in row["skipped"] if path
        ),
        seconds=Seconds(total=total, reading=reading, network=network, writing=writing),
    )
