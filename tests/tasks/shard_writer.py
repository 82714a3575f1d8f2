"""What the flow does, without Prefect, for processes that can be killed."""

import multiprocessing
from multiprocessing.process import BaseProcess

import torch

from tasks import parts
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__, "fcn.fused_cpu"])


def started(*urls: str) -> BaseProcess:
    """A process of its own that does it, forked from one that has imported PyTorch already."""
    process = _FORKS.Process(target=write_all, args=urls)
    process.start()
    return process


def write_all(collection: str, model: str, output: str) -> None:
    """Write every part that is missing, and the index."""
    torch.set_num_threads(1)
    config = PredictConfig(images_per_shard=5, max_failed=1)
    plan = plan_run(collection, model, output, config)
    for number in plan.missing:
        write_part(plan.manifest, number, model, config)
    parts.write_index(output, plan.manifest.card.model.label_classes())
