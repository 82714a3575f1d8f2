"""Networks run an image a core, or one on all cores and nothing beside it."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tasks.cores import Cores


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Three threads of torch in this process, as on a machine of three cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_torch() -> int:
    torch.ones(100_000).exp()  # where a thread of torch would take over the process's number
    return torch.get_num_threads()


def test_a_task_on_one_core_has_one_thread_and_one_on_all_has_all() -> None:
    cores = Cores(3)
    for _ in range(2):
        assert cores.on_one(threads_of_torch).result() == 1
        assert cores.on_all(threads_of_torch).result() == 3


def test_threads_of_others_are_left_alone() -> None:
    cores = Cores(2)
    cores.on_one(threads_of_torch).result()
    cores.on_all(threads_of_torch).result()
    assert threads_of_torch() == 3
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(threads_of_torch).result() == 3
    assert cores.on_one(threads_of_torch).result() == 1


def test_tasks_run_side_by_side_one_a_core() -> None:
    cores, met = Cores(3), threading.Barrier(3)
    jobs = [cores.on_one(lambda: met.wait(timeout=20)) for _ in range(3)]
    assert sorted(job.result() for job in jobs) == [0, 1, 2]


def test_nothing_runs_beside_a_task_on_all_cores() -> None:
    cores, running, seen = Cores(3), set[int](), list[tuple[int, set[int]]]()

    def task(number: int) -> None:
        running.add(number)
        time.sleep(0.005)
        seen.append((number, set(running)))
        running.remove(number)

    jobs = [
        (cores.on_all if number % 5 == 0 else cores.on_one)(lambda number=number: task(number))
        for number in range(20)
    ]
    for job in jobs:
        job.result()
    assert all(beside == {number} for number, beside in seen if number % 5 == 0)
    assert any(len(beside) > 1 for _, beside in seen)
    assert len(seen) == 20


def test_what_a_task_raises_comes_out_and_frees_its_cores() -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    cores = Cores(2)
    for submit in (cores.on_one, cores.on_all):
        with pytest.raises(RuntimeError, match="broken"):
            submit(broken).result()
    assert cores.on_all(lambda: "free").result() == "free"
