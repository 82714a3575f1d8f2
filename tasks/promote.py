"""The tasks of a promotion: score challenger and champion on the same images, and decide."""

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from pydantic import BaseModel, ConfigDict, Field

from fcn.backends import Backend
from fcn.device import Precision
from fcn.evaluate import score_samples
from fcn.intervals import UNKNOWN, Interval, bootstrap, paired_gain, tally
from fcn.metrics import Scores
from fcn.predict import Predictor
from fcn.recipes import Device
from tasks import serving, stores
from tasks.artifacts import Progress, publish_table
from tasks.assets import materialise
from tasks.dataset import DatasetInfo, open_split, require_split
from tasks.models import find_model, load_for, read_model
from tasks.report_data import percent, span
from tasks.serving import Previous, Promotion
from tasks.wording import number_of

EVENT = "fcn.model.promoted"
"""The event that a promotion emits, for automations."""


class PromoteConfig(BaseModel):
    """Settings of `promote`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["gain", "always"] = Field(
        "gain",
        description="gain: promote a challenger that gains more than min_gain; always: promote "
        "it whatever it scores, such as an earlier model to go back to.",
    )
    min_gain: float = Field(
        0.0,
        ge=-1,
        le=1,
        description="With the rule gain: the lower end of the paired 95 % interval of the gain in "
        "mean IU must be above this; 0.01 is one point. Below 0 a loss is taken, too. Of several "
        "heads the first one's mean IU decides.",
    )
    device: Device = Field(
        "auto",
        description="Where the networks run: auto (a GPU where there is one), cpu, cuda, cuda:1.",
    )
    precision: Precision = Field(
        "auto", description="The networks' arithmetic; auto is bf16 on a GPU, fp32 elsewhere."
    )
    backend: Backend = Field(
        "auto",
        description="What runs the networks: torch; on a CPU openvino or onnxruntime, which "
        "quantised models need; auto: on a CPU the fastest of them that is installed.",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """A model and what it scores, image by image.

    Attributes:
        url: where it was read.
        data: the bytes of its file, those that were scored.
        sha256: of these.
        tallies: ``N x 3 x C``, see `fcn.intervals.tally`.
        mean_iu: over the classes present in truth or prediction.
        interval: of the mean IU.
        further_mean_iu: mean IU of each further head, by name; all else is of the first head.
    """

    url: str
    data: bytes = field(repr=False)
    sha256: str
    tallies: NDArray[np.int64] = field(repr=False)
    mean_iu: float
    interval: Interval
    further_mean_iu: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PromoteSummary:
    """What became of a challenger.

    Attributes:
        promoted: yes or no, and why.
        serving_url: the pointer, for predict and evaluate as model_url.
        model_url: the model that serves now.
        split: what was compared on.
        num_images: images in it.
        mean_iu: of the challenger.
        champion_mean_iu: of the model that served so far; None if there was none.
        gain: by how much the challenger's is higher.
        gain_low: lower bound of the paired 95 % interval of that.
        gain_high: its upper bound.
        further_mean_iu: mean IU of each further head of the challenger, by name, None where the
            split has no pixel of it; the other figures are the first head's, which decides.
        champion_further_mean_iu: the same of the model that served so far.
    """

    promoted: str
    serving_url: str
    model_url: str
    split: str
    num_images: int
    mean_iu: float
    champion_mean_iu: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    further_mean_iu: dict[str, float | None] = field(default_factory=dict)
    champion_further_mean_iu: dict[str, float | None] = field(default_factory=dict)


@task(task_run_name="find the serving model", cache_policy=NO_CACHE)
def find_champion(
    models_url: str, challenger_url: str, info: DatasetInfo, split: str
) -> Promotion | None:
    """The promotion that counts, to which the pointer is set if it is not; None for none yet.

    Split and challenger are looked for first: a mistyped one leaves nothing behind.

    Raises:
        DatasetError: the dataset has no such split.
        StoreError: ``models_url`` holds credentials, or cannot be written; or there is no
            challenger.
        PromoteError: a record there is none of ours.
    """
    stores.require_no_credentials(models_url)
    require_split(info, split)
    find_model(challenger_url)
    stores.require_writable(models_url)
    return serving.point(models_url)


@task(task_run_name="score the {role} on {split}", cache_policy=NO_CACHE, persist_result=False)
def score_contender(
    role: Literal["challenger", "champion"],
    info: DatasetInfo,
    model_url: str,
    split: str,
    config: PromoteConfig,
) -> Contender:
    """Score a model on every image of a split, at the labels' own resolution.

    Raises:
        BackendError: a backend that is not installed, or not for this device, precision or model.
        CheckpointError: no usable model, or one of other classes than the dataset's.
        DatasetError: the dataset has no such split.
        StoreError: the model cannot be read.
    """
    samples = open_split(info, split)
    data = read_model(model_url)
    predictor = Predictor(
        load_for(info, data, model_url),
        device=config.device,
        precision=config.precision,
        backend=config.backend,
    )
    heads = {"": info.classes, **info.further_classes}
    totals = {name: np.zeros((len(c), len(c)), np.int64) for name, c in heads.items()}
    tallies, start = [], time.monotonic()
    with Progress(
        f"promote-{role}", total=len(samples), description=f"Scoring the {role}"
    ) as progress:
        for sample in score_samples(predictor, samples):
            for name, found in {"": sample, **sample.further}.items():
                totals[name] += found.confusion
            tallies.append(tally(sample.confusion))
            progress.advance()
    mean_ius = {name: Scores(total).mean_iu for name, total in totals.items()}
    stacked = np.reshape(tallies, (-1, 3, len(info.classes)))
    contender = Contender(
        url=stores.redact(model_url),
        data=data,
        sha256=hashlib.sha256(data).hexdigest(),
        tallies=stacked,
        mean_iu=mean_ius.pop(""),
        interval=bootstrap(stacked).mean_iu,
        further_mean_iu=mean_ius,
    )
    further = "".join(f", head {name} {percent(value)}" for name, value in mean_ius.items())
    get_run_logger().info(
        "%s %s: mean IU %s%s on %s of %s in %.1f s",
        role,
        contender.url,
        percent(contender.mean_iu) + span(contender.interval, " (%s)"),
        further,
        number_of(len(samples), "image"),
        split,
        time.monotonic() - start,
    )
    return contender


@task(task_run_name="decide", cache_policy=NO_CACHE, persist_result=False)
def settle(
    info: DatasetInfo,
    models_url: str,
    split: str,
    before: Promotion | None,
    challenger: Contender,
    champion: Contender | None,
    config: PromoteConfig,
) -> PromoteSummary:
    """Promote the challenger if the rule says so, and show the comparison on the run's page.

    Raises:
        PromoteError: another promotion was faster.
        StoreError: ``models_url`` cannot be written.
    """
    gain, interval = math.nan, UNKNOWN
    if champion is not None:
        gain = challenger.mean_iu - champion.mean_iu
        interval = paired_gain(challenger.tallies, champion.tallies)
    is_promoted, reason = decide(before, challenger, interval, config)
    if is_promoted:
        promotion = Promotion(
            number=before.number + 1 if before else 0,
            model_url=stores.absolute(serving.keep_model(models_url, challenger.data)),
            sha256=challenger.sha256,
            source_url=stores.absolute(challenger.url),
            promoted_at=datetime.now(UTC),
            rule=config.rule if before else "first",
            dataset_url=stores.absolute(stores.redact(info.url)),
            dataset_digest=info.digest,
            split=split,
            num_images=len(challenger.tallies),
            mean_iu=_known(challenger.mean_iu),
            mean_iu_low=_known(challenger.interval.low),
            mean_iu_high=_known(challenger.interval.high),
            gain=_known(gain),
            gain_low=_known(interval.low),
            gain_high=_known(interval.high),
            previous=before
            and Previous(number=before.number, model_url=before.model_url, sha256=before.sha256),
        )
        serving.publish(models_url, promotion)
        _announce(promotion, models_url)
        materialise(promotion.model_url, challenger.url, info.url, name="serving model")
    get_run_logger().info("%s: %s", "promoted" if is_promoted else "not promoted", reason)
    publish_table(
        "promote-comparison", comparison_rows(challenger, champion, gain, interval), reason
    )
    serving_model = serving.newest(models_url)
    return PromoteSummary(
        promoted=f"{'yes' if is_promoted else 'no'}: {reason}",
        serving_url=serving.serving_url(models_url),
        model_url=serving_model.model_url if serving_model else "",
        split=split,
        num_images=len(challenger.tallies),
        mean_iu=challenger.mean_iu,
        champion_mean_iu=None if champion is None else champion.mean_iu,
        gain=_known(gain),
        gain_low=_known(interval.low),
        gain_high=_known(interval.high),
        further_mean_iu=_further(challenger),
        champion_further_mean_iu=_further(champion) if champion else {},
    )


def decide(
    before: Promotion | None, challenger: Contender, gain: Interval, config: PromoteConfig
) -> tuple[bool, str]:
    """Whether a challenger is promoted, and why.

    Args:
        before: The promotion of the model that serves; None for none.
        challenger: The model that may take its place.
        gain: Paired interval of what it gains.
        config: The rule.
    """
    if before is None:
        return True, "no model served before"
    if challenger.sha256 == before.sha256:
        return False, "this very model serves already"
    if math.isnan(gain.low):
        found, above = "the gain is not known: there are fewer than two images", False
    else:
        above = gain.low > config.min_gain
        of_head = " of the first head" if challenger.further_mean_iu else ""
        found = (
            f"the gain in mean IU{of_head} is at least {_points(gain.low)} points (95 %), "
            f"{'above' if above else 'not above'} min_gain={_points(config.min_gain)} points"
        )
    if config.rule == "always":
        return True, f"rule always; {found}"
    return above, found


def comparison_rows(
    challenger: Contender, champion: Contender | None, gain: float, interval: Interval
) -> list[dict[str, str]]:
    """A row for each model, and one for the gain."""
    rows = [
        {
            "model": f"{role} {one.url}",
            "SHA-256": one.sha256[:12],
            "mean IU": percent(one.mean_iu) + span(one.interval, " (%s)"),
            **{f"mean IU, {name}": percent(iu) for name, iu in one.further_mean_iu.items()},
        }
        for role, one in (("challenger", challenger), ("champion", champion))
        if one is not None
    ]
    if champion is not None:
        bounds = f"{_points(interval.low)} to {_points(interval.high)}"
        further = {
            f"mean IU, {name}": f"{_points(iu - champion.further_mean_iu[name])} points"
            for name, iu in challenger.further_mean_iu.items()
        }
        first = {"model": "gain", "SHA-256": "", "mean IU": f"{_points(gain)} points ({bounds})"}
        rows.append(first | further)
    return rows


def _announce(promotion: Promotion, models_url: str) -> None:
    """Tell automations; see `EVENT`."""
    emit_event(
        EVENT,
        resource={
            "prefect.resource.id": f"fcn.model.{promotion.sha256}",
            "prefect.resource.name": promotion.model_url,
            "fcn.serving.url": stores.absolute(serving.serving_url(models_url)),
        },
        payload={
            "serving_url": stores.absolute(serving.serving_url(models_url)),
            **promotion.model_dump(mode="json"),
        },
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _further(contender: Contender) -> dict[str, float | None]:
    return {head: _known(mean_iu) for head, mean_iu in contender.further_mean_iu.items()}


def _points(value: float) -> str:
    """A difference of mean IU in points of a hundred, with its sign."""
    return "–" if math.isnan(value) else f"{100 * value:+.2f}"
