"""The tasks of a quantisation: see ranges on the train split, compare scores, write the model."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from fcn import quantise as ranges
from fcn.backends import Backend
from fcn.checkpoint import Model, to_bytes
from fcn.evaluate import score_samples
from fcn.metrics import Scores
from fcn.predict import Predictor
from fcn.samples import decode_pixels
from tasks import stores
from tasks.artifacts import Progress, publish_table
from tasks.dataset import DatasetInfo, Samples, open_split, require_split
from tasks.models import load_for, read_model
from tasks.report_data import percent


class QuantiseError(Exception):
    """A model that cannot be quantised, or loses more accuracy than allowed; none was written."""


class QuantiseConfig(BaseModel):
    """Settings of `quantise`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_images: int = Field(
        64,
        ge=1,
        le=10_000,
        description="Images of the train split on which the ranges of the network's layers are "
        "seen, evenly spread over it.",
    )
    max_loss: float = Field(
        0.5,
        ge=0,
        le=100,
        description="Largest loss of mean IU, in points, with which the model is written; of "
        "several heads none may lose more.",
    )
    backend: Backend = Field(
        "auto",
        description="What runs both models to compare them, openvino or onnxruntime, on a CPU; "
        "auto: the first of them that is installed.",
    )


@dataclass(frozen=True, kw_only=True)
class QuantiseSummary:
    """What a quantisation came to.

    Attributes:
        quantised_url: the quantised model.
        split: on what it was compared.
        num_images: images in it.
        mean_iu: of the model it was made from.
        quantised_mean_iu: of the quantised one.
        pixel_accuracy: of the model it was made from.
        quantised_pixel_accuracy: of the quantised one.
        further_mean_iu: mean IU of each further head of the model it was made from, by name; the
            other figures are the first head's.
        quantised_further_mean_iu: the same of the quantised one.
    """

    quantised_url: str
    split: str
    num_images: int
    mean_iu: float
    quantised_mean_iu: float
    pixel_accuracy: float
    quantised_pixel_accuracy: float
    further_mean_iu: dict[str, float] = field(default_factory=dict)
    quantised_further_mean_iu: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A quantised model that is still to be judged, the one it was made from, and its digest."""

    model: Model
    quantised: Model
    digest: str


@task(task_run_name="see ranges", cache_policy=NO_CACHE, persist_result=False)
def quantise_model(
    info: DatasetInfo, model_url: str, quantised_url: str, split: str, config: QuantiseConfig
) -> Candidate:
    """Quantise a model on images of the train split, to be compared on another one.

    Raises:
        CheckpointError: no usable model, or one of other classes than the dataset's.
        DatasetError: the dataset has no split train, or not the other one.
        QuantiseError: a model that is quantised already, or that would be overwritten.
        StoreError: the model cannot be read, or ``quantised_url`` not written.
    """
    stores.require_no_credentials(quantised_url)
    if quantised_url == model_url:
        raise QuantiseError("quantised_url is model_url; the quantised model is a file of its own")
    require_split(info, split)
    data = read_model(model_url)
    model = load_for(info, data, model_url)
    if model.ranges is not None:
        raise QuantiseError(
            f"model {stores.redact(model_url)} is quantised already; give the one it was made from"
        )
    samples = open_split(info, "train")
    stores.require_writable(quantised_url.rpartition("/")[0] or ".")
    places = spread(len(samples), config.num_images)
    images = (decode_pixels(samples[place], model.input.bands) for place in places)
    quantised = ranges.quantise(model, images)
    return Candidate(model=model, quantised=quantised, digest=hashlib.sha256(data).hexdigest())


@task(task_run_name="compare on {split}", cache_policy=NO_CACHE, persist_result=False)
def write_if_accurate(
    candidate: Candidate, info: DatasetInfo, quantised_url: str, split: str, config: QuantiseConfig
) -> QuantiseSummary:
    """Score both models on a split, and write the quantised one unless it is much worse.

    Raises:
        QuantiseError: one of its heads loses more mean IU than ``config.max_loss``.
        BackendError: no backend for quantised models is installed.
        DatasetError: the dataset has no such split.
        StoreError: the model cannot be written.
    """
    samples = open_split(info, split)
    models = (candidate.model, candidate.quantised)
    with Progress("quantise-progress", total=2 * len(samples), description="Comparing") as bar:
        before, after = (score(model, samples, config.backend, bar) for model in models)
    further = [_mean_ius(scores) for scores in (before, after)]
    summary = QuantiseSummary(
        quantised_url=quantised_url,
        split=split,
        num_images=len(samples),
        mean_iu=before[""].mean_iu,
        quantised_mean_iu=after[""].mean_iu,
        pixel_accuracy=before[""].pixel_accuracy,
        quantised_pixel_accuracy=after[""].pixel_accuracy,
        further_mean_iu=further[0],
        quantised_further_mean_iu=further[1],
    )
    publish_table("quantise-scores", score_rows(before, after), f"Scores on {split}")
    require_accurate(summary, config.max_loss)
    facts = {"from": candidate.digest, "split": split, "mean_iu": summary.mean_iu}
    facts |= {"quantised_mean_iu": summary.quantised_mean_iu}
    if further[0]:
        facts |= {"further_mean_iu": further[0], "quantised_further_mean_iu": further[1]}
    model = candidate.quantised
    stores.write_bytes(
        quantised_url, to_bytes(replace(model, facts={**model.facts, "quantised": facts}))
    )
    for head, (fp32, quantised) in _pairs(summary).items():
        get_run_logger().info(
            "%smean IU %s, quantised %s: %s",
            f"head {head}: " if head else "",
            percent(fp32),
            percent(quantised),
            stores.redact(quantised_url),
        )
    return summary


def spread(total: int, wanted: int) -> Sequence[int]:
    """Up to ``wanted`` positions of ``total``, evenly spread."""
    count = min(total, wanted)
    return [index * total // count for index in range(count)]


def score(model: Model, samples: Samples, backend: Backend, bar: Progress) -> dict[str, Scores]:
    """Scores of a model's heads on samples, on a CPU, by name; the first head's as ""."""
    predictor = Predictor(model, device="cpu", backend=backend)
    heads = {"": model.classes, **model.further_classes}
    totals = {name: np.zeros((len(c), len(c)), np.int64) for name, c in heads.items()}
    for scored in score_samples(predictor, samples):
        for name, found in {"": scored, **scored.further}.items():
            totals[name] += found.confusion
        bar.advance()
    return {name: Scores(total) for name, total in totals.items()}


def score_rows(before: Mapping[str, Scores], after: Mapping[str, Scores]) -> list[dict[str, str]]:
    """A row for each of the two models, of every head."""
    return [
        {
            "model": f"{name}, head {head}" if head else name,
            "mean IU": percent(scores[head].mean_iu),
            "pixel accuracy": percent(scores[head].pixel_accuracy),
        }
        for head in before
        for name, scores in (("fp32", before), ("quantised", after))
    ]


def require_accurate(summary: QuantiseSummary, max_loss: float) -> None:
    """Refuse a quantised model that is much worse than the one it was made from.

    Raises:
        QuantiseError: a head loses more than ``max_loss`` points of mean IU, or has no labelled
            pixel by which to tell.
    """
    for head, (fp32, quantised) in _pairs(summary).items():
        loss, of_head = 100 * (fp32 - quantised), f" with its head {head}" if head else ""
        if math.isnan(loss):
            raise QuantiseError(
                f"no pixel of {summary.split} is labelled{f' for head {head}' if head else ''}, so "
                "that the models cannot be compared; give a split that is. Nothing was written"
            )
        if loss > max_loss:
            raise QuantiseError(
                f"quantised, the model scores{of_head} a mean IU of {100 * quantised:.2f} % on "
                f"{summary.split}, {loss:.2f} points less than the {100 * fp32:.2f} % of fp32; "
                f"allowed are max_loss={max_loss:g}. Nothing was written; more num_images may "
                "help, or a backbone without depthwise convolutions"
            )


def _mean_ius(scores: Mapping[str, Scores]) -> dict[str, float]:
    """Mean IU of the further heads."""
    return {head: found.mean_iu for head, found in scores.items() if head}


def _pairs(summary: QuantiseSummary) -> dict[str, tuple[float, float]]:
    """Mean IU of fp32 and quantised, by head, the first one as ""."""
    after = summary.quantised_further_mean_iu
    further = {head: (fp32, after[head]) for head, fp32 in summary.further_mean_iu.items()}
    return {"": (summary.mean_iu, summary.quantised_mean_iu), **further}
