"""What the flow does, without Prefect, for processes that can be killed."""

import multiprocessing
from multiprocessing.process import BaseProcess

import torch

from tasks import parts
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["fcn.fused_cpu", "tasks.plan", "tasks.shards"])


class Writers:
    """Processes of their own, forked from one that has imported PyTorch; none outlives a test."""

    def __init__(self) -> None:
        self._started: list[BaseProcess] = []

    def start(self, *urls: str) -> BaseProcess:
        """One that does `write_all`."""
        process = _FORKS.Process(target=write_all, args=urls)
        process.start()
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill those that are left, stopped ones too."""
        for process in self._started:
            process.kill()
            process.join()


def write_all(collection: str, model: str, output: str) -> None:
    """Write every part that is missing, and the index."""
    torch.set_num_threads(1)
    config = PredictConfig(images_per_shard=5, max_failed=1)
    plan = plan_run(collection, model, output, config)
    for number in plan.missing:
        write_part(plan.manifest, number, model, config)
    parts.write_index(output, plan.manifest.card.model.label_classes())
