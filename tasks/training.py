"""A training in one of its processes: the trainer, and the log, metrics and state that it keeps.

Plain functions, for a task of this process and for the ranks of `tasks.torchrun` alike.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from logging import Logger, LoggerAdapter
from typing import Any

import numpy as np
import torch

from fcn.checkpoint import Model, to_bytes
from fcn.errors import CheckpointError, TrainingError
from fcn.evaluate import score_samples
from fcn.input import InputSpec
from fcn.metrics import Scores
from fcn.model import FCN
from fcn.parallel import World
from fcn.predict import Predictor
from fcn.recipes import TrainConfig
from fcn.train import Step, Trainer
from fcn.training_state import transplant_of
from fcn.weights import transplant
from tasks import stores
from tasks.dataset import FIRST_HEAD, DatasetInfo, Samples, open_split
from tasks.provenance import init_facts, training_facts
from tasks.runs import Row, Run
from tasks.wording import number_of

NUM_ROWS = 200
"""Lines of metrics.jsonl for a whole training: enough for a curve."""

LOG_SECONDS = 5
"""Least seconds between two lines of the log."""

STATE_SECONDS = 60
"""Least seconds between two states: what a killed training loses at most."""

Log = Logger | LoggerAdapter[Any]

Advance = Callable[[int, str], None]
"""Hears how many images a step took, and a note on it."""


def make_trainer(
    info: DatasetInfo,
    config: TrainConfig,
    state: bytes | None,
    world: World = World(),  # noqa: B008 - frozen
) -> Trainer:
    """A trainer on the split "train", with its first weights, or those of a state.

    Raises:
        TrainingError: a trunk for the bands is wanted, and there are none.
    """
    if config.late_fusion and not info.bands:
        raise TrainingError(
            "late_fusion gives the bands a trunk of their own, but the dataset has none; take "
            "late_fusion=False, or ingest folders bands-NAME/ beside images/"
        )
    samples = open_split(info, "train")
    torch.manual_seed(config.seed)
    sizes = {FIRST_HEAD: len(info.classes)}
    sizes |= {name: len(classes) for name, classes in info.further_classes.items()}
    net = FCN(
        config.backbone,
        sum(sizes.values()),
        config.stride,
        learnable_upsampling=config.learnable_upsampling,
        at_once=config.at_once,
        heads=sizes if info.further_classes else None,
        in_channels=3 + len(info.bands),
        modalities=(3, len(info.bands)) if config.late_fusion else None,
    )
    if state is None:
        first = transplant(
            net,
            config.init,
            info.classes,
            stores.read_bytes,
            init_classes=config.init_classes,
            further_classes=info.further_classes,
        )
    else:
        first = transplant_of(state)
    return Trainer(
        Model(
            net,
            info.classes,
            _with_bands(first.input, info),
            init_facts(config, first),
            further_classes=info.further_classes,
        ),
        samples,
        config,
        class_pixels=info.splits["train"].all_class_pixels,
        transplant=first,
        state=state,
        world=world,
    )


def _with_bands(spec: InputSpec, info: DatasetInfo) -> InputSpec:
    """The input of the first weights, with the dataset's bands unless they have their own.

    Raises:
        CheckpointError: they were trained on other bands.
    """
    if not spec.bands:
        return replace(spec, bands=info.bands)
    found, wanted = ([(b.name, b.dtype) for b in bands] for bands in (spec.bands, info.bands))
    if found != wanted:
        raise CheckpointError(
            f"init is a model of images with the bands {found}, the dataset has {wanted}; start "
            "from one with the same bands, or without any"
        )
    return spec


class Recorder:
    """Runs a trainer, and keeps its log, metrics and state; of several ranks, the first does."""

    def __init__(
        self, info: DatasetInfo, run: Run, trainer: Trainer, config: TrainConfig, logger: Log
    ) -> None:
        self.run, self.trainer, self.config = run, trainer, config
        self.logger = logger
        # Lines beyond the state are of steps that a killed process did in vain.
        self.rows = [row for row in run.read_metrics() if row["step"] <= trainer.step]
        self.best = best_mean_iu(self.rows)
        self.interval = max(1, trainer.num_steps // NUM_ROWS)
        self.recent: list[Step] = []
        self.val = open_split(info, "val") if "val" in info.splits else None
        self.info = info
        self.saved = self.logged = time.monotonic()

    def record(self, advance: Advance) -> None:
        """Train to the end."""
        trainer = self.trainer
        for step in trainer.run():
            self._note(step, advance)
            if self._evaluates(step):
                self._evaluate(step)
            elif trainer.world.rank == 0 and time.monotonic() - self.saved > STATE_SECONDS:
                self._save()
        if trainer.world.rank == 0:
            self.run.write_metrics(self.rows)
            evaluations = [row for row in self.rows if "mean_iu" in row]
            self.run.write_model(self._model_bytes(evaluations[-1] if evaluations else None))

    def _note(self, step: Step, advance: Advance) -> None:
        if self.trainer.world.rank == 0:
            self.recent.append(step)
            advance(step.num_images, f"loss {step.loss:.3f}")
            self._log(step)

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
                "skipped %d of the last %s: no labelled pixel, or fp16 overflowed",
                row["skipped"],
                number_of(len(steps), "step"),
            )
        self.logger.info(
            "epoch %d of %d, step %s of %s: loss %s, learning rate %.2e, %.1f images/s, "
            "waited %.0f %%",
            step.epoch if step.ends_epoch else step.epoch + 1,
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
        start = time.monotonic()
        by_head = None if self.val is None else self._scores(self.val)
        if self.trainer.world.rank:
            return
        row = None
        if by_head is not None and self.val is not None:
            scores, *further = by_head
            row = evaluation_row(
                step, scores, dict(zip(self.info.further_classes, further, strict=True))
            )
            self.rows.append(row)
            self.logger.info(
                "epoch %d: mean IU %.2f %%, pixel accuracy %.2f %% on %s of val in %.0f s",
                step.epoch,
                100 * scores.mean_iu,
                100 * scores.pixel_accuracy,
                number_of(len(self.val), "image"),
                time.monotonic() - start,
            )
            for head, found in zip(self.info.further_classes, further, strict=True):
                self.logger.info(
                    "epoch %d, head %s: mean IU %.2f %%, pixel accuracy %.2f %%",
                    step.epoch,
                    head,
                    100 * found.mean_iu,
                    100 * found.pixel_accuracy,
                )
        self._save(row)

    def _scores(self, samples: Samples) -> list[Scores]:
        """Of all samples, each scored by one of the ranks; of every head, the first one's first."""
        config, world = self.config, self.trainer.world
        predictor = Predictor(self.trainer.model, device=config.device, precision=config.precision)
        share = (samples[index] for index in world.share(range(len(samples))))
        sizes = [len(classes) for classes in self.trainer.model.all_classes]
        totals = [torch.zeros(size, size, dtype=torch.int64) for size in sizes]
        for sample in score_samples(predictor, share):
            for total, scored in zip(totals, [sample, *sample.further.values()], strict=True):
                total.add_(torch.from_numpy(scored.confusion))
        return [Scores(world.gather(total).sum(dim=0).numpy()) for total in totals]

    def _save(self, evaluation: Row | None = None) -> None:
        """Metrics and the best model first: whoever resumes from the state before does them anew.

        Were the state first, a process killed between the two would leave it without them.
        """
        state = self.trainer.state()
        self.run.write_metrics(self.rows)
        if evaluation is not None and (mean_iu := best_mean_iu([evaluation])) > self.best:
            self.best = mean_iu
            self.run.write_best(self._model_bytes(evaluation))
        self.run.write_state(state)
        self.saved = time.monotonic()

    def _model_bytes(self, evaluation: Row | None) -> bytes:
        """The model as it is now, with its figures on val."""
        self.trainer.model.facts.update(
            **training_facts(self.info, self.config),
            scores={"split": "val", **evaluation} if evaluation else {},
        )
        return to_bytes(self.trainer.model)


def best_mean_iu(rows: Sequence[Row]) -> float:
    """The highest mean IU of the evaluations among rows of metrics.jsonl; -inf for none."""
    values = [row["mean_iu"] for row in rows if row.get("mean_iu") is not None]
    return max(values, default=-math.inf)


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


def evaluation_row(step: Step, scores: Scores, further: Mapping[str, Scores] | None = None) -> Row:
    """The line of metrics.jsonl for an evaluation; what has no pixels to it has null.

    The figures of further heads stand under ``further``, by name. Which model is the best is
    told by the first head alone.
    """
    row: Row = {"step": step.step, "epoch": step.epoch, **_figures(scores)}
    if further:
        row["further"] = {head: _figures(found) for head, found in further.items()}
    return row


def _figures(scores: Scores) -> Row:
    return {
        "pixel_accuracy": _or_none(scores.pixel_accuracy),
        "mean_accuracy": _or_none(scores.mean_accuracy),
        "mean_iu": _or_none(scores.mean_iu),
        "frequency_weighted_iu": _or_none(scores.frequency_weighted_iu),
        "iu": [_or_none(float(iu)) for iu in scores.iu],
    }


def _or_none(value: float) -> float | None:
    """A figure as JSON has it, which knows no nan."""
    return None if math.isnan(value) else value
