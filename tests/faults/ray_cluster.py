"""Three Ray nodes on this machine, one of which can be taken away: started by test_shards.py.

Prints the cluster's address, then reads lines from stdin. `remove`: waits until a node that is not
the first one computes, ends that node as a lost machine ends, and prints `removed`. The end of
stdin ends all.
"""

import os
import sys
import time
from pathlib import Path

NODE = {
    "num_cpus": 1,
    "object_store_memory": 80 * 2**20,
    "include_dashboard": False,
    "node_ip_address": "127.0.0.2",  # Ray takes 127.0.0.1 for this machine's address on the net
}


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for tasks in Path("/proc").glob(f"{pid}/task/*/children"):
        found += [int(child) for child in tasks.read_text().split()]
    return found


def computes(node: object) -> bool:
    """Whether a process of this node has a part to compute."""
    (raylet,) = node.all_processes["raylet"]
    for pid in children(raylet.process.pid):
        try:
            if b"MapWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            continue
    return False


def main() -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # not where pytest looks for examples in this file

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        others = [cluster.add_node(**NODE) for _ in range(2)]
        sys.stdout.write(f"{cluster.address}\n")
        sys.stdout.flush()
        for _ in sys.stdin:
            until = time.monotonic() + 120
            while not (busy := [node for node in others if computes(node)]):
                if time.monotonic() > until:
                    sys.exit("no node but the first one computes")
                time.sleep(0.02)
            cluster.remove_node(busy[0], allow_graceful=False)
            sys.stdout.write("removed\n")
            sys.stdout.flush()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
