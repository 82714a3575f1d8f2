"""Where networks run: on a CPU an image a core, so that no image waits for another's threads.

All cores at work on one image wait for the slowest of them after every layer, and whatever else
runs beside them (decoders, encoders) makes one slow. An image on one core waits for nobody, and
what comes out of it does not depend on the number of cores. Only where so many images at once
would not fit into memory do all cores work on one.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from tasks.budget import Budget

Result = TypeVar("Result")

_starting = threading.Lock()


class Cores:
    """Threads for torch: as many as cores with one core each, and one with all of them.

    Nothing runs beside what runs on all cores: for each thread that asks OpenMP for several it
    keeps a team of its own, and with more teams than cores every parallel loop waits for
    sleeping threads. Threads start when there is something for them to do.

    Args:
        number: Cores to use.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._free = Budget(number)
        self._each = ThreadPoolExecutor(number, "network", initializer=_use_threads, initargs=(1,))
        self._all = ThreadPoolExecutor(1, "networks", initializer=_use_threads, initargs=(number,))

    def on_one(self, task: Callable[[], Result]) -> Future[Result]:
        """Run a task on one core, once one is free."""
        return self._each.submit(self._run, task, 1)

    def on_all(self, task: Callable[[], Result]) -> Future[Result]:
        """Run a task on all cores, once they are free; those asked for later come after it."""
        return self._all.submit(self._run, task, self.number)

    def _run(self, task: Callable[[], Result], cores: int) -> Result:
        with self._free.share() as share:
            share.take(cores)
            return task()


def _use_threads(number: int) -> None:
    """Have torch divide this thread's work among so many threads, and nobody else's."""
    with _starting:
        # A thread takes over the process's number when it first asks, and `set_num_threads`
        # also sets that: both must be over, and the latter undone, before anyone goes on.
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        undo = threading.Thread(target=torch.set_num_threads, args=(before,))
        undo.start()
        undo.join()
