"""The tasks of a training: claim the run, train, and write what is left of it."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from fcn.checkpoint import Model, to_bytes
from fcn.evaluate import score_samples
from fcn.metrics import Scores
from fcn.model import FCN
from fcn.predict import Predictor
from fcn.recipes import TrainConfig
from fcn.train import Step, Trainer, transplant_of
from fcn.weights import transplant
from tasks import stores
from tasks.artifacts import Progress
from tasks.dataset import DatasetInfo, Samples, open_split
from tasks.runs import Row, Run, claim

NUM_ROWS = 200
"""Lines of metrics.jsonl for a whole training: enough for a curve."""

LOG_SECONDS = 5
"""Least seconds between two lines of the log."""

STATE_SECONDS = 60
"""Least seconds between two states: what a killed training loses at most."""


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

    Returns:
        URL of the trained model.
    """
    logger = get_run_logger()
    if config.deterministic:  # cuBLAS reads it once, before its first product
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if run.is_done():
        logger.info("nothing to do: %s is trained already", stores.redact(run.model_url))
        return run.model_url
    samples = open_split(info, "train")
    logger.info("training on %s images of %s", f"{len(samples):,}", stores.redact(info.url))
    try:
        trainer = make_trainer(info, samples, run, config)
    except Exception:
        run.release()  # other settings, which the error may ask for, find the place free
        raise
    if trainer.step:
        logger.info("resumed at step %s of %s", f"{trainer.step:,}", f"{trainer.num_steps:,}")
    start = time.monotonic()
    _Recorder(info, run, trainer, config).record()
    logger.info("trained %s steps in %.0f s", f"{trainer.num_steps:,}", time.monotonic() - start)
    return run.model_url


def make_trainer(info: DatasetInfo, samples: Samples, run: Run, config: TrainConfig) -> Trainer:
    """A trainer with its first weights, or those of the run's state."""
    torch.manual_seed(config.seed)
    net = FCN(
        config.backbone,
        len(info.classes),
        config.stride,
        learnable_upsampling=config.learnable_upsampling,
        at_once=config.at_once,
    )
    state = run.read_state()
    if state is None:
        first = transplant(
            net,
            config.init,
            info.classes,
            stores.read_bytes,
            init_classes=config.init_classes,
        )
    else:
        first = transplant_of(state)
    return Trainer(
        Model(net, info.classes, first.input),
        samples,
        config,
        class_pixels=info.splits["train"].class_pixels,
        transplant=first,
        state=state,
    )


class _Recorder:
    """Runs a trainer, and keeps its log, metrics, progress and state."""

    def __init__(self, info: DatasetInfo, run: Run, trainer: Trainer, config: TrainConfig) -> None:
        self.run, self.trainer, self.config = run, trainer, config
        self.logger = get_run_logger()
        # Lines beyond the state are of steps that a killed process did in vain.
        self.rows = [row for row in run.read_metrics() if row["step"] <= trainer.step]
        self.best = best_mean_iu(self.rows)
        self.interval = max(1, trainer.num_steps // NUM_ROWS)
        self.recent: list[Step] = []
        self.val = open_split(info, "val") if "val" in info.splits else None
        self.info = info
        self.saved = self.logged = time.monotonic()

    def record(self) -> None:
        """Train to the end."""
        trainer = self.trainer
        total = self.config.epochs * trainer.num_samples
        done = min(total, trainer.step * self.config.batch_size * self.config.accumulate)
        with Progress("train-progress", total=total, done=done, description="Training") as progress:
            for step in trainer.run():
                self.recent.append(step)
                progress.advance(step.num_images, note=f"loss {step.loss:.3f}")
                self._log(step)
                if self._evaluates(step):
                    self._evaluate(step)
                elif time.monotonic() - self.saved > STATE_SECONDS:
                    self._save()
        self.run.write_metrics(self.rows)
        evaluations = [row for row in self.rows if "mean_iu" in row]
        self.run.write_model(self._model_bytes(evaluations[-1] if evaluations else None))

    def _log(self, step: Step) -> None:
        last = step.step == self.trainer.num_steps
        if step.step % self.interval and not last:
            return
        steps, self.recent = self.recent, []
        row = summary(steps)
        self.rows.append(row)
        if time.monotonic() - self.logged < LOG_SECONDS and not last:
            return
        self.logged = time.monotonic()
        if row["skipped"]:
            self.logger.warning(
                "%d of the last %d steps were skipped: no labelled pixel, or fp16 overflowed",
                row["skipped"],
                len(steps),
            )
        self.logger.info(
            "epoch %d of %d, step %s of %s: loss %s, learning rate %.2e, %.1f images/s, "
            "waited %.0f %%",
            row["epoch"],
            self.config.epochs,
            f"{step.step:,}",
            f"{self.trainer.num_steps:,}",
            "-" if row["loss"] is None else f"{row['loss']:.4f}",
            row["learning_rate"],
            row["images_per_second"],
            100 * row["waited"],
        )

    def _evaluates(self, step: Step) -> bool:
        last = step.step == self.trainer.num_steps
        return last or (step.ends_epoch and step.epoch % self.config.evaluate_every == 0)

    def _evaluate(self, step: Step) -> None:
        row = None
        if self.val is not None:
            start = time.monotonic()
            row = evaluation_row(step, self._scores(self.val))
            self.rows.append(row)
            self.logger.info(
                "epoch %d: mean IU %.2f %%, pixel accuracy %.2f %% on %d val images in %.0f s",
                step.epoch,
                100 * row["mean_iu"],
                100 * row["pixel_accuracy"],
                len(self.val),
                time.monotonic() - start,
            )
        self._save(row)

    def _scores(self, samples: Samples) -> Scores:
        config = self.config
        predictor = Predictor(self.trainer.model, device=config.device, precision=config.precision)
        scored = score_samples(predictor, samples)
        return Scores(np.sum([sample.confusion for sample in scored], axis=0))

    def _save(self, evaluation: Row | None = None) -> None:
        """Metrics and the best model first: whoever resumes from the state before does them anew.

        Were the state first, a process killed between the two would leave it without them.
        """
        state = self.trainer.state()
        self.run.write_metrics(self.rows)
        if evaluation is not None and evaluation["mean_iu"] > self.best:
            self.best = evaluation["mean_iu"]
            self.run.write_best(self._model_bytes(evaluation))
        self.run.write_state(state)
        self.saved = time.monotonic()

    def _model_bytes(self, evaluation: Row | None) -> bytes:
        """The model as it is now, with its figures on val."""
        self.trainer.model.facts.update(
            dataset={"digest": self.info.digest, "source": self.info.source},
            config=self.config.model_dump(mode="json") | {"init": stores.redact(self.config.init)},
            scores={"split": "val", **evaluation} if evaluation else {},
        )
        return to_bytes(self.trainer.model)


def best_mean_iu(rows: Sequence[Row]) -> float:
    """The highest mean IU of the evaluations among rows of metrics.jsonl; -inf for none."""
    values = [row["mean_iu"] for row in rows if "mean_iu" in row]
    return max((value for value in values if not math.isnan(value)), default=-math.inf)


def summary(steps: list[Step]) -> Row:
    """The line of metrics.jsonl for a few steps: means, and rates over their whole time.

    The loss is that of the steps that changed the weights, None if there is none.
    """
    seconds = sum(step.seconds for step in steps)
    images = sum(step.num_images for step in steps)
    losses = [step.loss for step in steps if not step.skipped]
    return {
        "step": steps[-1].step,
        "epoch": steps[-1].epoch,
        "loss": float(np.mean(losses)) if losses else None,
        "skipped": len(steps) - len(losses),
        "learning_rate": steps[-1].learning_rate,
        "images_per_second": images / seconds,
        "waited": sum(step.waited for step in steps) / seconds,
    }


def evaluation_row(step: Step, scores: Scores) -> Row:
    """The line of metrics.jsonl for an evaluation; classes that do not occur have null."""
    return {
        "step": step.step,
        "epoch": step.epoch,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "mean_iu": scores.mean_iu,
        "frequency_weighted_iu": scores.frequency_weighted_iu,
        "iu": [None if np.isnan(iu) else float(iu) for iu in scores.iu],
    }


@dataclass(frozen=True)
class TrainSummary:
    """What a training run left.

    Attributes:
        model_url: The model after the last step.
        best_url: The model of the evaluation with the highest mean IU on val; None without a
            val split. Its figures there flatter it: val chose it.
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
