"""The report of a run: one page that needs nothing beside it, its plots, and Markdown.

Class names, keys and settings come from outside: the page escapes all of them, and forbids
itself to load anything.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fcn.classes import Classes, Colour
from fcn.draw import Panel, contact_sheet, error_map, overlay, png_bytes
from fcn.metrics import Scores
from tasks import markdown as md
from tasks import stores
from tasks.plots import DARK, MetricsRow, plot_confusion, plot_curves

Group = Literal["best", "typical", "worst"]

PICTURE_WIDTH = 400
"""Width in pixels above which pictures of the page are made smaller."""

MARKDOWN_BYTES = 500_000
"""What the Markdown is kept under, by leaving out examples from the end."""

_GROUPS: Mapping[Group, str] = {"best": "Best", "typical": "Typical", "worst": "Worst"}


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
        scores: Of the whole split.
        classes: Their names and colours.
        metrics: Rows of metrics.jsonl; without any there are no learning curves.
        examples: Shown in the order best, typical, worst.
        facts: Settings, digests and the like: name and value, by group.
    """

    title: str
    subtitle: str = ""
    scores: Scores
    classes: Classes
    metrics: Sequence[MetricsRow] = ()
    examples: Sequence[Example] = ()
    facts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


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


def write_report(url: str, report: Report) -> str:
    """Write report.html and its plots below ``url``, the page last, and return its URL.

    Raises:
        StoreError: ``url`` cannot be written.
    """
    for name, data in render(report).items():
        stores.write_bytes(stores.join(url, name), data)
    return stores.join(url, "report.html")


def render(report: Report) -> dict[str, bytes]:
    """The files of a report by name: confusion.png, curves.png, examples.png, report.html.

    There are no curves without metrics, and no examples.png without examples.
    """
    files = {"confusion.png": plot_confusion(report.scores, report.classes)}
    if curves := plot_curves(report.metrics):
        files["curves.png"] = curves
    if report.examples:
        files["examples.png"] = png_bytes(_sheet(report))
    files["report.html"] = _page(report, files).encode("utf-8", "replace")
    return files


def markdown(report: Report) -> str:
    """The report for Prefect's pages: figures, classes, plots and small overlays."""
    header = ["", "class", "IU", "accuracy", "true pixels", "most often taken for"]
    rows = [
        [_swatch(colour), row.name, row.iu, row.accuracy, row.true_share, row.taken_for]
        for row, colour in zip(_class_rows(report), report.classes.palette, strict=True)
    ]
    parts = [
        f"# {md.escape(report.title)}",
        md.escape(report.subtitle),
        md.table([name for name, _ in _headline(report)], [[v for _, v in _headline(report)]]),
        "## Classes",
        md.table(header, rows),
    ]
    if curves := plot_curves(report.metrics):
        parts += ["## Learning curves", _plot_markdown(curves, "learning curves")]
    parts += [
        "## Confusion",
        _plot_markdown(plot_confusion(report.scores, report.classes), "confusion matrix"),
    ]
    if report.examples:
        parts += ["## Examples", "Image, truth, prediction."]
    size = sum(map(len, parts))
    for example in _ordered(report.examples):
        text = f"{_GROUPS[example.group]}: mean IU {percent(example.score)}, {example.caption}"
        strip = md.image(_strip(example, report.classes), example.caption, max_width=600)
        size += len(strip)
        if size > MARKDOWN_BYTES:
            break
        parts += [md.escape(text), strip]
    return "\n\n".join(part for part in parts if part) + "\n"


def percent(share: float) -> str:
    """A share for people: ``86.4 %``, and a dash for what is not a number."""
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"


@dataclass(frozen=True, kw_only=True)
class _ClassRow:
    name: str
    colour: str
    present: bool
    iu: str
    bar: float
    accuracy: str
    true_share: str
    predicted_share: str
    taken_for: str


def _class_rows(report: Report) -> Iterator[_ClassRow]:
    matrix, scores = report.scores.confusion, report.scores
    total = max(1, int(matrix.sum()))
    for index, (name, colour) in enumerate(
        zip(report.classes.names, report.classes.palette, strict=True)
    ):
        iu = float(scores.iu[index])
        yield _ClassRow(
            name=name,
            colour="#{:02x}{:02x}{:02x}".format(*colour),
            present=not math.isnan(iu),
            iu=percent(iu),
            bar=0.0 if math.isnan(iu) else round(100 * iu, 1),
            accuracy=percent(float(scores.accuracy[index])),
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


def _headline(report: Report) -> list[tuple[str, str]]:
    scores = report.scores
    present = f"mean IU over {scores.num_present} of {len(report.classes)} classes"
    return [
        (present, percent(scores.mean_iu)),
        ("pixel accuracy", percent(scores.pixel_accuracy)),
        ("mean accuracy", percent(scores.mean_accuracy)),
        ("frequency-weighted IU", percent(scores.frequency_weighted_iu)),
    ]


def _page(report: Report, files: Mapping[str, bytes]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    curves = plot_curves(report.metrics, DARK)
    return environment.get_template("report.html.j2").render(
        report=report,
        headline=_headline(report),
        class_rows=list(_class_rows(report)),
        curves=(files["curves.png"], curves) if curves else None,
        confusion=(files["confusion.png"], plot_confusion(report.scores, report.classes, DARK)),
        examples=_shown(report),
        plot=_plot_html,
    )


def _plot_html(plot: tuple[bytes, bytes], alt: str) -> Markup:
    """A plot in its light and its dark version; the page shows the one that fits."""
    light, dark = (md.data_url(data, "image/png") for data in plot)
    return Markup(
        '<picture><source media="(prefers-color-scheme: dark)" srcset="{}">'
        '<img class="plot" src="{}" alt="{}" style="zoom: .66"></picture>'
    ).format(dark, light, alt)


def _plot_markdown(plot: bytes, alt: str) -> str:
    return f"![{md.escape(alt)}]({md.data_url(plot, 'image/png')})"


def _swatch(colour: Colour) -> md.Markdown:
    return md.image(np.full((14, 14, 3), colour, np.uint8), "")


def _ordered(examples: Sequence[Example]) -> list[Example]:
    return [example for group in _GROUPS for example in examples if example.group == group]


def _shown(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    """Heading and examples of every group that has some, as the page shows them."""
    shown = [
        (heading, [_example_page(e, report.classes) for e in report.examples if e.group == group])
        for group, heading in _GROUPS.items()
    ]
    return [(heading, members) for heading, members in shown if members]


def _example_page(example: Example, classes: Classes) -> dict[str, Any]:
    return {
        "caption": example.caption,
        "score": percent(example.score),
        "pictures": [
            (name, md.image_url(picture, max_width=PICTURE_WIDTH))
            for name, picture in _pictures(example, classes)
        ],
    }


def _pictures(example: Example, classes: Classes) -> list[tuple[str, np.ndarray]]:
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


def _strip(example: Example, classes: Classes) -> np.ndarray:
    """Image, truth and prediction side by side."""
    pictures = [picture for _, picture in _pictures(example, classes)[:3]]
    gap = np.full((pictures[0].shape[0], 6, 3), 255, np.uint8)
    return np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1)


def _sheet(report: Report) -> np.ndarray:
    """All examples on one picture, a row each."""
    rows = []
    for example in _ordered(report.examples):
        title = f"{_GROUPS[example.group]}: {example.caption}\nmean IU {percent(example.score)}"
        rows.append(
            [
                Panel(image=picture, caption=title if name == "image" else name)
                for name, picture in _pictures(example, report.classes)
            ]
        )
    return contact_sheet(rows, classes=report.classes, title=report.title)
