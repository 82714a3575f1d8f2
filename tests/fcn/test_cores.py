import os
from pathlib import Path

import pytest

import fcn
from fcn.cores import num_cores

ROOT = Path(fcn.__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_cores_are_those_that_this_process_may_run_on() -> None:
    allowed = os.sched_getaffinity(0)
    assert num_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_nobody_counts_cores_that_it_may_not_run_on() -> None:
    files = [path for floor in ("fcn", "tasks", "flows") for path in (ROOT / floor).rglob("*.py")]
    counting = [path.name for path in files if "cpu_count" in path.read_text(encoding="utf-8")]
    assert counting == ["cores.py"]
