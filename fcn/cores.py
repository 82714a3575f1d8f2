"""How many processor cores there are for this process."""

import os
import sys


def num_cores() -> int:
    """Cores that this process may run on: ``taskset`` or a cpuset may leave it few of many.

    A quota of processor time (``docker --cpus``, a limit of Kubernetes) is no such bound.
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
