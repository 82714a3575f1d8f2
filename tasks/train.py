"""The tasks of a training: claim the run, train, and write what is left of it."""

import os
import time
from dataclasses import dataclass

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from fcn.recipes import TrainConfig
from fcn.train import check_shareable
from tasks import stores
from tasks.artifacts import Progress
from tasks.assets import materialise
from tasks.dataset import DatasetInfo
from tasks.runs import Run, claim
from tasks.torchrun import num_processes, train_over_ranks
from tasks.training import Recorder, make_trainer
from tasks.wording import number_of


@task(task_run_name="claim the run", cache_policy=NO_CACHE)
def claim_run(info: DatasetInfo, run_url: str, config: TrainConfig) -> Run:
    """Make sure that this run_url is free, or of this very training."""
    run = claim(run_url, info, config)
    if not config.resume:
        run.start_over()
    return run


@task(task_run_name="train {config.backbone} FCN-{config.stride}s", cache_policy=NO_CACHE)
def train_network(info: DatasetInfo, run: Run, config: TrainConfig) -> str:
    """Train on the split "train", from the state of an earlier process if there is one.

    In this process, or in several, which are one tree of processes under it and end with it.

    Returns:
        URL of the trained model.
    """
    logger = get_run_logger()
    if config.deterministic:  # cuBLAS reads it once, before its first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if run.is_done():
        logger.info("nothing to do: %s is trained already", stores.redact(run.model_url))
        return run.model_url
    try:
        count = num_processes(config)
        # Of several, this process only begins: no memory of a GPU for it.
        here = config if count == 1 else config.model_copy(update={"device": "cpu"})
        trainer = make_trainer(info, here, run.read_state())
        check_shareable(config, trainer.net, count)
    except Exception:
        run.release()  # other settings, which the error may ask for, find the place free
        raise
    images = number_of(trainer.num_samples, "image")
    logger.info("training on %s of %s", images, stores.redact(info.url))
    num_steps, total = trainer.num_steps, trainer.num_samples * config.epochs
    if trainer.step:
        logger.info("resumed at step %s of %s", f"{trainer.step:,}", f"{num_steps:,}")
    start, begun_at = time.monotonic(), trainer.step
    with Progress(
        "train-progress", total=total, done=trainer.num_seen, description="Training"
    ) as progress:
        if count == 1:
            Recorder(info, run, trainer, config, logger).record(progress.advance)
        else:
            logger.info("training in %d processes, through torchrun", count)
            states = [trainer.state()]
            del trainer  # for hours this process holds neither network nor state
            train_over_ranks(
                *(info, run, config, states.pop()),
                count=count,
                logger=logger,
                advance=progress.advance,
            )
    steps = number_of(num_steps, "step")
    if begun_at:
        steps = f"{num_steps - begun_at:,} of {steps}"
    logger.info("trained %s in %.0f s", steps, time.monotonic() - start)
    for url in filter(None, (run.model_url, run.find_best())):
        materialise(url, info.url, name="model", dataset_digest=info.digest)
    return run.model_url


@dataclass(frozen=True)
class TrainSummary:
    """What a training run left.

    Attributes:
        model_url: The model after the last step.
        best_url: The model of the evaluation with the highest mean IU on val, of several heads
            that of the first; None without a val split. Its figures there flatter it: val chose it.
        report_url: The report, an HTML page.
        split: The split that the figures of the last model are of.
        mean_iu: Over the classes that occur.
        pixel_accuracy: Share of the right pixels.
    """

    model_url: str
    best_url: str | None
    report_url: str
    split: str
    mean_iu: float
    pixel_accuracy: float
