"""The tasks of an evaluation: score a model on a split, and report it."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from fcn.checkpoint import Model, load
from fcn.device import Device, Precision
from fcn.errors import CheckpointError
from fcn.evaluate import Scored, score_samples
from fcn.metrics import Scores
from fcn.predict import Predictor
from tasks import stores
from tasks.artifacts import Progress, publish_markdown, publish_table
from tasks.dataset import DatasetInfo, Samples, open_split
from tasks.report import Example, Report, choose_examples, markdown, percent, write_report
from tasks.runs import Row


class EvaluateConfig(BaseModel):
    """Settings of `evaluate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device = Field(
        "auto",
        description="Where the network runs: auto (a GPU where there is one), cpu, cuda, cuda:1.",
    )
    precision: Precision = Field(
        "auto", description="The network's arithmetic; auto is bf16 on a GPU, fp32 elsewhere."
    )
    num_examples: int = Field(
        3, ge=0, le=50, description="Images shown of each kind: best, typical, worst."
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A model's scores on one split.

    Attributes:
        split: name of the split.
        scores: of the whole split.
        keys: keys of its samples.
        image_scores: mean IU of each sample alone.
        examples: best, typical and worst samples with their predictions.
        model: the model, for what its card says.
        model_digest: SHA-256 of the model's file.
    """

    split: str
    scores: Scores
    keys: Sequence[str]
    image_scores: Sequence[float]
    examples: Sequence[Example]
    model: Model
    model_digest: str


@dataclass(frozen=True, kw_only=True)
class EvaluateSummary:
    """The figures of an evaluation, and where its report is.

    Attributes:
        split: name of the split.
        num_images: images in it.
        mean_iu: over the classes present in truth or prediction.
        num_present: how many these are.
        pixel_accuracy: share of the right pixels.
        mean_accuracy: mean over the classes of their accuracy.
        frequency_weighted_iu: IU weighted by how often a class occurs.
        report_url: the report, an HTML page.
    """

    split: str
    num_images: int
    mean_iu: float
    num_present: int
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iu: float
    report_url: str


@task(task_run_name="claim the report's place", cache_policy=NO_CACHE)
def claim_report(report_url: str) -> None:
    """Make sure that a report can be written, before anything is scored.

    Raises:
        StoreError: ``report_url`` holds credentials, or cannot be written.
    """
    stores.require_no_credentials(report_url)
    stores.require_writable(report_url)


@task(task_run_name="score on {split}", cache_policy=NO_CACHE, persist_result=False)
def score_split(
    info: DatasetInfo, model_url: str, split: str, config: EvaluateConfig
) -> Evaluation:
    """Predict every image of a split and compare it with its label map.

    Raises:
        CheckpointError: no usable model, or one of other classes than the dataset's.
        DatasetError: the dataset has no such split.
        StoreError: the model cannot be read.
    """
    logger = get_run_logger()
    samples = open_split(info, split)
    data = stores.read_bytes(model_url)
    model = load_for(info, data, model_url)
    predictor = Predictor(model, device=config.device, precision=config.precision)
    start = time.monotonic()
    matrices = []
    with Progress("evaluate-progress", total=len(samples), description="Evaluating") as progress:
        for scored in score_samples(predictor, samples):
            matrices.append(scored.confusion)
            progress.advance()
    scores = Scores(np.sum(matrices, axis=0))
    image_scores = [Scores(matrix).mean_iu for matrix in matrices]
    seconds = time.monotonic() - start
    logger.info(
        "mean IU %s over %d of %d classes, pixel accuracy %s; %s images of %s in %.1f s (%.1f/s)",
        percent(scores.mean_iu),
        scores.num_present,
        len(info.classes),
        percent(scores.pixel_accuracy),
        f"{len(samples):,}",
        split,
        seconds,
        len(samples) / seconds,
    )
    return Evaluation(
        split=split,
        scores=scores,
        keys=samples.keys,
        image_scores=image_scores,
        examples=_examples(predictor, samples, image_scores, config.num_examples),
        model=model,
        model_digest=hashlib.sha256(data).hexdigest(),
    )


@task(task_run_name="report on {evaluation.split}", cache_policy=NO_CACHE)
def report_evaluation(
    evaluation: Evaluation, info: DatasetInfo, report_url: str, metrics: Sequence[Row] = ()
) -> EvaluateSummary:
    """Write the report, and show figures, pictures and the hardest images on the run's page."""
    report = Report(
        title=f"{_name(evaluation.model)} on {evaluation.split}",
        subtitle=f"{len(evaluation.keys):,} images of {info.source}, at their own resolution.",
        scores=evaluation.scores,
        classes=info.classes,
        metrics=metrics,
        examples=evaluation.examples,
        facts=_facts(evaluation, info),
    )
    url = write_report(report_url, report)
    publish_markdown("evaluate-report", markdown(report), f"Report, also at {stores.redact(url)}")
    publish_table("evaluate-classes", class_rows(evaluation.scores, info), "Figures of every class")
    publish_table("evaluate-hardest", hardest(evaluation), "The images with the lowest mean IU")
    get_run_logger().info("report: %s", stores.redact(url))
    scores = evaluation.scores
    return EvaluateSummary(
        split=evaluation.split,
        num_images=len(evaluation.keys),
        mean_iu=scores.mean_iu,
        num_present=scores.num_present,
        pixel_accuracy=scores.pixel_accuracy,
        mean_accuracy=scores.mean_accuracy,
        frequency_weighted_iu=scores.frequency_weighted_iu,
        report_url=url,
    )


def load_for(info: DatasetInfo, data: bytes, model_url: str) -> Model:
    """A model that has the classes of a dataset.

    Raises:
        CheckpointError: no usable model, or one of other classes.
    """
    try:
        model = load(data)
    except CheckpointError as error:
        raise CheckpointError(f"model {stores.redact(model_url)}: {error}") from error
    if model.classes.names != info.classes.names:
        raise CheckpointError(
            f"model {stores.redact(model_url)} has {len(model.classes)} classes "
            f"({', '.join(model.classes.names[:3])}, …), the dataset {stores.redact(info.url)} has "
            f"{len(info.classes)} ({', '.join(info.classes.names[:3])}, …); evaluate on a dataset "
            "with the classes the model was trained on"
        )
    return model


def class_rows(scores: Scores, info: DatasetInfo) -> list[dict[str, object]]:
    """A row per class, and one with the means."""
    rows: list[dict[str, object]] = [
        {"class": name, "IU": percent(iu), "accuracy": percent(accuracy), "pixels": f"{pixels:,}"}
        for name, iu, accuracy, pixels in zip(
            info.classes.names,
            scores.iu,
            scores.accuracy,
            scores.confusion.sum(axis=1),
            strict=True,
        )
    ]
    mean = {"IU": percent(scores.mean_iu), "accuracy": percent(scores.mean_accuracy)}
    total = f"{int(scores.confusion.sum()):,}"
    return [*rows, {"class": f"mean of {scores.num_present}", **mean, "pixels": total}]


def hardest(evaluation: Evaluation, count: int = 20) -> list[dict[str, object]]:
    """The samples with the lowest mean IU, lowest first."""
    scored = zip(evaluation.keys, evaluation.image_scores, strict=True)
    ranked = sorted((score, key) for key, score in scored if not np.isnan(score))
    return [{"image": key, "mean IU": percent(score)} for score, key in ranked[:count]]


def evaluation_split(info: DatasetInfo) -> str:
    """The split that a training is reported on: val, or train where there is no other."""
    return "val" if "val" in info.splits else "train"


def _examples(
    predictor: Predictor, samples: Samples, image_scores: Sequence[float], count: int
) -> list[Example]:
    chosen = choose_examples(image_scores, count) if count else {}
    order = [(group, index) for group, indices in chosen.items() for index in indices]
    scored = score_samples(predictor, (samples[index] for _, index in order))
    return [
        _example(group, sample, samples[index].key, image_scores[index])
        for (group, index), sample in zip(order, scored, strict=True)
    ]


def _example(group: str, scored: Scored, key: str, score: float) -> Example:
    return Example(
        group=group,  # type: ignore[arg-type]
        image=scored.image,
        label=scored.label,
        prediction=scored.prediction,
        caption=key,
        score=score,
    )


def _name(model: Model) -> str:
    return f"FCN-{model.net.stride}s on {model.net.backbone}"


def _facts(evaluation: Evaluation, info: DatasetInfo) -> dict[str, Mapping[str, object]]:
    facts = evaluation.model.facts
    return {
        "Model": {"file digest": evaluation.model_digest, **facts.get("versions", {})},
        "Dataset": {"source": info.source, "digest": info.digest},
        "Trained on": facts.get("dataset", {}),
        "Training": facts.get("config", {}),
    }
