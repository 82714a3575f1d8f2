"""The tasks of an evaluation: score a model on a split, and report it."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from fcn import evaluate as scoring
from fcn.averaging import AveragedPredictor
from fcn.backends import Backend, RunsOn
from fcn.checkpoint import Model
from fcn.device import Precision
from fcn.errors import BackendError
from fcn.evaluate import Scored, SplitScores, score_samples
from fcn.predict import Predictor
from fcn.recipes import Device
from tasks import stores
from tasks.artifacts import Progress, publish_markdown, publish_table
from tasks.assets import materialise
from tasks.dataset import DatasetInfo, Samples, open_split, require_split
from tasks.image_scores import hardest, write_image_scores
from tasks.models import find_model, load_for, read_model
from tasks.report import Example, Report, choose_examples, markdown, render, write_report
from tasks.report_data import percent, span
from tasks.runs import Row
from tasks.wording import number_of


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
    backend: Backend = Field(
        "auto",
        description="What runs the network: torch, or on a CPU openvino or onnxruntime, of the "
        "extras openvino and export; auto: the fastest that is installed. With flip or with "
        "other scales than 1 it is torch.",
    )
    flip: bool = Field(
        False,
        description="Look at the mirror image too and average the probabilities; costs twice.",
    )
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = Field(
        (1.0,),
        min_length=1,
        description="Sizes at which to look at every image, as multiples of its own; the "
        "probabilities are averaged. With flip or with other scales than 1 images run whole, "
        "however large.",
    )
    num_examples: int = Field(
        3, ge=0, le=50, description="Images shown of each kind: best, typical, worst."
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """A model's scores on one split.

    Attributes:
        split: name of the split.
        result: scores of the whole split, and of each sample alone.
        keys: keys of its samples.
        examples: best, typical and worst samples with their predictions.
        further_examples: the same samples with those of further heads, by name.
        model: the model, for what its card says.
        model_url: where it is.
        model_digest: SHA-256 of the model's file.
        config: how it was looked at.
        backend: what ran the network.
    """

    split: str
    result: SplitScores
    keys: Sequence[str]
    examples: Sequence[Example]
    further_examples: Mapping[str, Sequence[Example]]
    model: Model
    model_url: str
    model_digest: str
    config: EvaluateConfig
    backend: RunsOn


@dataclass(frozen=True, kw_only=True)
class EvaluateSummary:
    """The figures of an evaluation, and where its report is.

    Bounds are those of a 95 % bootstrap interval over the images (`fcn.intervals`).

    Attributes:
        split: name of the split.
        num_images: images in it.
        mean_iu: over the classes present in truth or prediction.
        mean_iu_low: its lower bound; nan for a single image.
        mean_iu_high: its upper bound.
        num_present: how many classes are present.
        pixel_accuracy: share of the right pixels.
        pixel_accuracy_low: its lower bound.
        pixel_accuracy_high: its upper bound.
        mean_accuracy: mean over the classes of their accuracy.
        frequency_weighted_iu: IU weighted by how often a class occurs.
        boundary_f1: how well outlines are met, mean over the classes (`fcn.boundary`).
        report_url: the report, an HTML page.
        images_url: the scores of every image, a Parquet file.
        further_mean_iu: mean IU of each further head, by name; the other figures are the first
            head's.
    """

    split: str
    num_images: int
    mean_iu: float
    mean_iu_low: float
    mean_iu_high: float
    num_present: int
    pixel_accuracy: float
    pixel_accuracy_low: float
    pixel_accuracy_high: float
    mean_accuracy: float
    frequency_weighted_iu: float
    boundary_f1: float
    report_url: str
    images_url: str
    further_mean_iu: dict[str, float] = field(default_factory=dict)


@task(task_run_name="claim the report's place", cache_policy=NO_CACHE)
def claim_report(report_url: str, info: DatasetInfo, model_url: str, split: str) -> None:
    """Make sure that a report can be written, before anything is scored.

    Split and model are looked for first: a mistyped one leaves nothing behind.

    Raises:
        DatasetError: the dataset has no such split.
        StoreError: ``report_url`` holds credentials, or cannot be written; or there is no model.
    """
    stores.require_no_credentials(report_url)
    require_split(info, split)
    find_model(model_url)
    stores.require_writable(report_url)


@task(task_run_name="score on {split}", cache_policy=NO_CACHE, persist_result=False)
def score_split(
    info: DatasetInfo, model_url: str, split: str, config: EvaluateConfig
) -> Evaluation:
    """Predict every image of a split and compare it with its label map.

    Raises:
        BackendError: a backend that is not installed, or cannot do as asked.
        CheckpointError: no usable model, or one of other classes than the dataset's.
        DatasetError: the dataset has no such split.
        StoreError: the model cannot be read.
    """
    logger = get_run_logger()
    samples = open_split(info, split)
    data = read_model(model_url)
    model = load_for(info, data, model_url)
    predictor = make_predictor(model, config)
    start = time.monotonic()
    with Progress("evaluate-progress", total=len(samples), description="Evaluating") as progress:
        result = scoring.score_split(
            _advancing(score_samples(predictor, samples), progress),
            info.classes,
            info.further_classes,
        )
    seconds = time.monotonic() - start
    scores, intervals = result.scores, result.intervals
    logger.info(
        "mean IU %s%s over %d of %d classes, pixel accuracy %s%s, boundary F1 %s; "
        "%s of %s in %.1f s (%.1f images/s)",
        percent(scores.mean_iu),
        span(intervals.mean_iu, " (%s)"),
        scores.num_present,
        len(info.classes),
        percent(scores.pixel_accuracy),
        span(intervals.pixel_accuracy, " (%s)"),
        percent(result.mean_boundary_f1),
        number_of(len(samples), "image"),
        split,
        seconds,
        len(samples) / seconds,
    )
    for head, found in result.further.items():
        logger.info(
            "head %s: mean IU %s%s, pixel accuracy %s%s",
            head,
            percent(found.scores.mean_iu),
            span(found.intervals.mean_iu, " (%s)"),
            percent(found.scores.pixel_accuracy),
            span(found.intervals.pixel_accuracy, " (%s)"),
        )
    examples = _examples(predictor, samples, result, config.num_examples)
    return Evaluation(
        split=split,
        result=result,
        keys=samples.keys,
        examples=examples.pop(""),
        further_examples=examples,
        model=model,
        model_url=model_url,
        model_digest=hashlib.sha256(data).hexdigest(),
        config=config,
        backend=predictor.backend if isinstance(predictor, Predictor) else "torch",
    )


@task(task_run_name="report on {evaluation.split}", cache_policy=NO_CACHE)
def report_evaluation(
    evaluation: Evaluation, info: DatasetInfo, report_url: str, metrics: Sequence[Row] = ()
) -> EvaluateSummary:
    """Write the report, and show figures, pictures and the hardest images on the run's page."""
    result, keys = evaluation.result, evaluation.keys
    hardest_rows = hardest(keys, result.images)
    report = Report(
        title=f"{_name(evaluation.model)} on {evaluation.split}",
        subtitle=f"{len(keys):,} images of {info.source}, at their own resolution.",
        result=result,
        classes=info.classes,
        metrics=metrics,
        hardest=hardest_rows,
        examples=evaluation.examples,
        facts=_facts(evaluation, info),
        further={
            head: Report(
                title=f"Head {head}",
                result=found,
                classes=info.further_classes[head],
                hardest=hardest(keys, found.images),
                examples=evaluation.further_examples.get(head, ()),
            )
            for head, found in result.further.items()
        },
    )
    further_images = {head: found.images for head, found in result.further.items()}
    images_url = write_image_scores(report_url, keys, result.images, further_images)
    files = render(report)
    url = write_report(report_url, files)
    page = markdown(report, files)
    publish_markdown("evaluate-report", page, f"Report, also at {stores.redact(url)}")
    classes = class_rows(result, info)
    for head, found in result.further.items():
        rows = class_rows(found, replace(info, classes=info.further_classes[head]))
        classes += [{**row, "class": f"{head}: {row['class']}"} for row in rows]
    publish_table("evaluate-classes", classes, "Figures of every class")
    publish_table("evaluate-hardest", hardest_rows, "The images with the lowest mean IU")
    materialise(url, info.url, evaluation.model_url, name="report", mean_iu=result.scores.mean_iu)
    get_run_logger().info("report: %s", stores.redact(url))
    scores, intervals = result.scores, result.intervals
    return EvaluateSummary(
        split=evaluation.split,
        num_images=len(keys),
        mean_iu=scores.mean_iu,
        mean_iu_low=intervals.mean_iu.low,
        mean_iu_high=intervals.mean_iu.high,
        num_present=scores.num_present,
        pixel_accuracy=scores.pixel_accuracy,
        pixel_accuracy_low=intervals.pixel_accuracy.low,
        pixel_accuracy_high=intervals.pixel_accuracy.high,
        mean_accuracy=scores.mean_accuracy,
        frequency_weighted_iu=scores.frequency_weighted_iu,
        boundary_f1=result.mean_boundary_f1,
        report_url=url,
        images_url=images_url,
        further_mean_iu={head: found.scores.mean_iu for head, found in result.further.items()},
    )


def make_predictor(model: Model, config: EvaluateConfig) -> Predictor | AveragedPredictor:
    """What looks at the images: once each, or several times if the settings say so.

    Raises:
        BackendError: a backend that is not installed, or cannot do as asked.
    """
    if config.flip or config.scales != (1.0,):
        if config.backend not in ("auto", "torch"):
            raise BackendError(
                f"flip and scales need backend 'torch' or 'auto', not {config.backend!r}"
            )
        return AveragedPredictor(
            model,
            flip=config.flip,
            scales=config.scales,
            device=config.device,
            precision=config.precision,
        )
    return Predictor(
        model, device=config.device, precision=config.precision, backend=config.backend
    )


def _advancing(samples: Iterator[Scored], progress: Progress) -> Iterator[Scored]:
    for scored in samples:
        yield scored
        progress.advance()


def class_rows(result: SplitScores, info: DatasetInfo) -> list[dict[str, str]]:
    """A row per class, and one with the means and their intervals."""
    scores, intervals = result.scores, result.intervals
    rows = [
        {
            "class": name,
            "IU": percent(iu),
            "accuracy": percent(accuracy),
            "boundary F1": percent(boundary),
            "pixels": f"{pixels:,}",
        }
        for name, iu, accuracy, boundary, pixels in zip(
            info.classes.names,
            scores.iu,
            scores.accuracy,
            result.boundary_f1,
            scores.confusion.sum(axis=1),
            strict=True,
        )
    ]
    mean = {
        "class": f"mean of {scores.num_present}",
        "IU": percent(scores.mean_iu) + span(intervals.mean_iu, " (%s)"),
        "accuracy": percent(scores.mean_accuracy),
        "boundary F1": percent(result.mean_boundary_f1),
        "pixels": f"{int(scores.confusion.sum()):,}",
    }
    every = {
        "class": "all pixels",
        "IU": "",
        "accuracy": percent(scores.pixel_accuracy) + span(intervals.pixel_accuracy, " (%s)"),
        "boundary F1": "",
        "pixels": "",
    }
    return [*rows, mean, every]


def evaluation_split(info: DatasetInfo) -> str:
    """The split that a training is reported on: val, or train where there is no other."""
    return "val" if "val" in info.splits else "train"


def _examples(
    predictor: Predictor | AveragedPredictor, samples: Samples, result: SplitScores, count: int
) -> dict[str, list[Example]]:
    """Examples of every head by name, the first one's as "", whose scores choose the samples."""
    image_scores = [image.mean_iu for image in result.images]
    chosen = choose_examples(image_scores, count) if count else {}
    results = {"": result, **result.further}
    examples: dict[str, list[Example]] = {head: [] for head in results}
    order = [(group, index) for group, indices in chosen.items() for index in indices]
    scored = score_samples(predictor, (samples[index] for _, index in order))
    for (group, index), sample in zip(order, scored, strict=True):
        for head, found in {"": sample, **sample.further}.items():
            score = results[head].images[index].mean_iu
            examples[head].append(_example(group, found, samples[index].key, score))
    return examples


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
        "Evaluation": {
            "backend": evaluation.backend,
            "mirror image too": "yes" if evaluation.config.flip else "no",
            "scales": ", ".join(f"{scale:g}" for scale in evaluation.config.scales),
        },
        "Dataset": {"source": info.source, "digest": info.digest},
        "Trained on": facts.get("dataset", {}),
        "Training": facts.get("config", {}),
    }
