"""The report of a run: one page that needs nothing beside it, its plots, and Markdown.

Class names, keys and settings come from outside: the page escapes all of them, and forbids
itself to load anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fcn.classes import Classes, Colour
from fcn.draw import Panel, contact_sheet, png_bytes
from tasks import markdown as md
from tasks import stores
from tasks.plots import Plot, plot_confusion, plot_curves, plot_images
from tasks.report_data import (
    BOUNDARY_NOTE,
    GROUPS,
    PICTURE_WIDTH,
    Example,
    Report,
    choose_examples,
    class_rows,
    headline,
    interval_note,
    ordered,
    percent,
    pictures,
)

__all__ = [
    "MARKDOWN_BYTES",
    "Example",
    "Report",
    "choose_examples",
    "markdown",
    "percent",
    "render",
    "write_report",
]

MARKDOWN_BYTES = 500_000
"""What the Markdown is kept under, by leaving out examples from the end."""


def write_report(url: str, files: Mapping[str, bytes]) -> str:
    """Write what `render` gives below ``url``, the page last, and return the page's URL.

    Raises:
        StoreError: ``url`` cannot be written.
    """
    for name, data in files.items():
        stores.write_bytes(stores.join(url, name), data)
    return stores.join(url, "report.html")


def render(report: Report) -> dict[str, bytes]:
    """The files of a report by name: four plots as PNG, and report.html.

    There are no curves.png without metrics, no images.png with fewer than two scored images,
    and no examples.png without examples. Those of a further head are ``confusion_NAME.png`` and
    so on.
    """
    files, parts = {}, []
    for head, of_head in _heads(report).items():
        plots = {
            "curves": plot_curves(of_head.metrics),
            "confusion": plot_confusion(of_head.result.scores, of_head.classes),
            "images": plot_images([image.mean_iu for image in of_head.result.images]),
        }
        for name, plot in plots.items():
            if plot:
                files[_plot_name(name, head)] = plot.light
        if of_head.examples:
            files[_plot_name("examples", head)] = png_bytes(_sheet(of_head))
        parts.append(_part(of_head, plots))
    files["report.html"] = _page(report, parts).encode("utf-8", "replace")
    return files


def _heads(report: Report) -> dict[str, Report]:
    """The report of every head by name, the first one's as ""."""
    return {"": report, **report.further}


def _plot_name(name: str, head: str) -> str:
    return f"{name}_{head}.png" if head else f"{name}.png"


def markdown(report: Report, files: Mapping[str, bytes]) -> str:
    """The report for Prefect's pages: figures, classes, plots and small overlays.

    Args:
        report: What it is made from.
        files: What `render` has made of it; the plots are taken from there.
    """
    parts = [
        part for head, of_head in _heads(report).items() for part in _sections(of_head, files, head)
    ]
    size = sum(map(len, parts))
    for of_head in _heads(report).values():
        if of_head.examples:
            parts += [
                f"## {md.escape(_examples_heading(report, of_head))}",
                "Image, truth, prediction.",
            ]
        for example in ordered(of_head.examples):
            text = f"{GROUPS[example.group]}: mean IU {percent(example.score)}, {example.caption}"
            strip = md.image(_strip(example, of_head.classes), example.caption, max_width=600)
            size += len(strip)
            if size > MARKDOWN_BYTES:
                break
            parts += [md.escape(text), strip]
    return "\n\n".join(part for part in parts if part) + "\n"


def _examples_heading(report: Report, of_head: Report) -> str:
    return "Examples" if of_head is report else f"Examples, {of_head.title}"


def _sections(report: Report, files: Mapping[str, bytes], head: str) -> list[str]:
    """Figures, classes and plots of one head."""
    header = ["", "class", "IU", "accuracy", "boundary F1", "true pixels", "most often taken for"]
    rows = [
        [
            *(_swatch(colour), row.name, row.iu, row.accuracy, row.boundary_f1),
            *(row.true_share, row.taken_for),
        ]
        for row, colour in zip(class_rows(report), report.classes.palette, strict=True)
    ]
    figures = headline(report)
    parts = [
        f"# {md.escape(report.title)}",
        md.escape(report.subtitle),
        md.table(
            ["over all images", "", "range"],
            [[figure.name, figure.value, figure.interval] for figure in figures],
        ),
        interval_note(report),
        "## Classes",
        md.table(header, rows),
        BOUNDARY_NOTE,
    ]
    if report.metrics and (curves := files.get(_plot_name("curves", head))):
        parts += ["## Learning curves", _plot_markdown(curves, "learning curves")]
    confusion = files[_plot_name("confusion", head)]
    parts += ["## Confusion", _plot_markdown(confusion, "confusion matrix")]
    if images := files.get(_plot_name("images", head)):
        parts += ["## Images", _plot_markdown(images, "mean IU of the images")]
    return parts


def _page(report: Report, parts: Sequence[Mapping[str, Any]]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        parts=parts,
        boundary_note=BOUNDARY_NOTE,
        plot=_plot_html,
    )


def _part(report: Report, plots: Mapping[str, Plot | None]) -> dict[str, Any]:
    """What the page shows of one head."""
    return {
        **plots,
        "title": report.title,
        "headline": headline(report),
        "class_rows": list(class_rows(report)),
        "interval_note": interval_note(report),
        "hardest": report.hardest,
        "examples": _shown(report),
    }


def _plot_html(plot: Plot, alt: str) -> Markup:
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


def _shown(report: Report) -> list[tuple[str, list[dict[str, Any]]]]:
    """Heading and examples of every group that has some, as the page shows them."""
    shown = [
        (heading, [_example_page(e, report.classes) for e in report.examples if e.group == group])
        for group, heading in GROUPS.items()
    ]
    return [(heading, members) for heading, members in shown if members]


def _example_page(example: Example, classes: Classes) -> dict[str, Any]:
    return {
        "caption": example.caption,
        "score": percent(example.score),
        "pictures": [
            (name, md.image_url(picture, max_width=PICTURE_WIDTH))
            for name, picture in pictures(example, classes)
        ],
    }


def _strip(example: Example, classes: Classes) -> np.ndarray:
    """Image, truth and prediction side by side."""
    image, truth, prediction = (picture for _, picture in pictures(example, classes)[:3])
    gap = np.full((image.shape[0], 6, 3), 255, np.uint8)
    return np.concatenate([image, gap, truth, gap, prediction], axis=1)


def _sheet(report: Report) -> np.ndarray:
    """All examples on one picture, a row each."""
    rows = []
    for example in ordered(report.examples):
        title = f"{GROUPS[example.group]}: {example.caption}\nmean IU {percent(example.score)}"
        rows.append(
            [
                Panel(image=picture, caption=title if name == "image" else name)
                for name, picture in pictures(example, report.classes)
            ]
        )
    return contact_sheet(rows, classes=report.classes, title=report.title)
