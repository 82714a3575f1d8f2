"""What a report is made from, and what its page and its Markdown have in common."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fcn.boundary import TOLERANCE
from fcn.classes import Classes
from fcn.draw import error_map, overlay
from fcn.evaluate import SplitScores
from fcn.intervals import LEVEL, Interval
from tasks.plots import MetricsRow

Group = Literal["best", "typical", "worst"]

GROUPS: Mapping[Group, str] = {"best": "Best", "typical": "Typical", "worst": "Worst"}
"""Why an example is shown, in the order of the page, and the heading there."""

PICTURE_WIDTH = 400
"""Width in pixels above which pictures of the page are made smaller."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image of the split with its truth and its prediction.

    Attributes:
        group: Why it is shown.
        image: RGB uint8 ``H x W x 3``.
        label: Class ids ``H x W``.
        prediction: Class ids ``H x W``.
        caption: Names the image.
        score: Mean IU of this image alone.
    """

    group: Group
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    caption: str
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What a report is made from.

    Attributes:
        title: Heading of the page.
        subtitle: One sentence below it.
        result: Scores of the whole split and of its images.
        classes: Their names and colours.
        metrics: Rows of metrics.jsonl; without any there are no learning curves.
        hardest: Rows of a table of the hardest images: column and text.
        examples: Shown in the order best, typical, worst.
        facts: Settings, digests and the like: name and value, by group.
        further: Of further heads, by name; their sections follow on the same page.
    """

    title: str
    subtitle: str = ""
    result: SplitScores
    classes: Classes
    metrics: Sequence[MetricsRow] = ()
    hardest: Sequence[Mapping[str, str]] = ()
    examples: Sequence[Example] = ()
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    further: Mapping[str, "Report"] = field(default_factory=dict)


def choose_examples(scores: Sequence[float], count: int = 3) -> dict[Group, list[int]]:
    """Which images to show: indices of the best, the typical and the worst scores.

    Typical are those around the median. No index is given twice; scores that are not a number
    (an image whose pixels are all ignored) are passed over.

    Args:
        scores: A score per image, such as its mean IU.
        count: How many of each at most.
    """
    order = sorted(
        (i for i, score in enumerate(scores) if not math.isnan(score)), key=scores.__getitem__
    )
    each = min(count, -(-len(order) // 3))
    worst, rest = order[:each], order[each:]
    best = rest[max(0, len(rest) - each) :][::-1]
    between = rest[: max(0, len(rest) - each)]
    start = max(0, (len(between) - each) // 2)
    return {"best": best, "typical": between[start : start + each], "worst": worst}


def percent(share: float) -> str:
    """A share for people: ``86.4 %``, and a dash for what is not a number."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


def span(interval: Interval, form: str = "%s") -> str:
    """An interval for people, ``40.1–44.9 %``, within a text; nothing where it is not known."""
    if math.isnan(interval.low):
        return ""
    return form % f"{100 * interval.low:.1f}–{100 * interval.high:.1f} %"


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class as the tables show it.

    Attributes:
        name: Of the class; not escaped.
        colour: As in CSS, ``#7fb0ec``.
        present: It occurs in truth or prediction.
        iu: In percent, or a dash.
        bar: IU from 0 to 100.
        accuracy: In percent, or a dash.
        boundary_f1: In percent, or a dash.
        true_share: Share of the counted pixels that are of this class.
        predicted_share: Share of the counted pixels that were taken for it.
        taken_for: The other class that most of its pixels were taken for, and how many.
    """

    name: str
    colour: str
    present: bool
    iu: str
    bar: float
    accuracy: str
    boundary_f1: str
    true_share: str
    predicted_share: str
    taken_for: str


def class_rows(report: Report) -> Iterator[ClassRow]:
    """A row per class, by id."""
    scores = report.result.scores
    matrix = scores.confusion
    total = max(1, int(matrix.sum()))
    for index, (name, colour) in enumerate(
        zip(report.classes.names, report.classes.palette, strict=True)
    ):
        iu = float(scores.iu[index])
        yield ClassRow(
            name=name,
            colour="#{:02x}{:02x}{:02x}".format(*colour),
            present=not math.isnan(iu),
            iu=percent(iu),
            bar=0.0 if math.isnan(iu) else round(100 * iu, 1),
            accuracy=percent(float(scores.accuracy[index])),
            boundary_f1=percent(float(report.result.boundary_f1[index])),
            true_share=percent(float(matrix[index].sum()) / total),
            predicted_share=percent(float(matrix[:, index].sum()) / total),
            taken_for=_taken_for(matrix[index], index, report.classes),
        )


def _taken_for(row: np.ndarray, index: int, classes: Classes) -> str:
    """The wrong class that most pixels of a class went to, with their share."""
    wrong = row.copy()
    wrong[index] = 0
    if not wrong.any():
        return ""
    return f"{classes.names[int(wrong.argmax())]}, {percent(float(wrong.max() / row.sum()))}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure that stands first: its name, its value, and its interval where there is one."""

    name: str
    value: str
    interval: str = ""


def headline(report: Report) -> list[Figure]:
    """The figures that stand first."""
    result, scores, intervals = report.result, report.result.scores, report.result.intervals
    return [
        Figure(
            name=f"mean IU over {scores.num_present} of {len(report.classes)} classes",
            value=percent(scores.mean_iu),
            interval=span(intervals.mean_iu),
        ),
        Figure(
            name="pixel accuracy",
            value=percent(scores.pixel_accuracy),
            interval=span(intervals.pixel_accuracy),
        ),
        Figure(name="mean accuracy", value=percent(scores.mean_accuracy)),
        Figure(name="frequency-weighted IU", value=percent(scores.frequency_weighted_iu)),
        Figure(name="boundary F1", value=percent(result.mean_boundary_f1)),
    ]


BOUNDARY_NOTE = (
    "Boundary F1 tells how well the outline of a class is met, give or take "
    f"{100 * TOLERANCE:.2f} % of the image's diagonal."
)


def interval_note(report: Report) -> str:
    """What the ranges with the figures are; nothing where there are none."""
    if not any(figure.interval for figure in headline(report)):
        return ""
    return (
        f"The range with a figure is its {100 * LEVEL:.0f} % bootstrap interval: how far it moves "
        "with the choice of the images."
    )


def ordered(examples: Sequence[Example]) -> list[Example]:
    """The examples in the order of `GROUPS`."""
    return [example for group in GROUPS for example in examples if example.group == group]


def pictures(example: Example, classes: Classes) -> list[tuple[str, np.ndarray]]:
    """Image, truth, prediction and mistakes of an example, not much larger than shown."""
    step = max(1, example.image.shape[1] // (2 * PICTURE_WIDTH))
    image, label, prediction = (
        array[::step, ::step] for array in (example.image, example.label, example.prediction)
    )
    return [
        ("image", image),
        ("truth", overlay(image, label, classes, alpha=0.6)),
        ("prediction", overlay(image, prediction, classes, alpha=0.6)),
        ("mistakes in red", error_map(label, prediction, classes.ignore_index)),
    ]
