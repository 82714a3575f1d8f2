"""Plots of a run, light and dark, as PNG bytes: learning curves, confusion, scores by image.

Figures are made without pyplot, whose current figure is shared by all threads.
"""

import io
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator
from PIL import Image

from fcn.classes import Classes
from fcn.metrics import Scores

MetricsRow = Mapping[str, Any]

SMOOTHING = 0.06
"""Width of the loss's smoothing window, as a part of the curve's length."""

_FONT = "DejaVu Sans"  # comes with matplotlib, so the plots look the same everywhere


@dataclass(frozen=True)
class Theme:
    """Colours of a plot."""

    paper: str
    ink: str
    grid: str
    first: str
    second: str
    third: str


LIGHT = Theme("#ffffff", "#22272e", "#dfe3e8", "#2563a8", "#c2571a", "#3f7d4e")
DARK = Theme("#1b1f24", "#d6dbe1", "#353c45", "#6cb0f2", "#f0944d", "#7cc48d")


class Plot(NamedTuple):
    """A plot in both themes, PNG bytes."""

    light: bytes
    dark: bytes


def plot_curves(metrics: Sequence[MetricsRow]) -> Plot | None:
    """Loss, scores of the evaluations, and learning rate by step; None if there are none.

    Args:
        metrics: Rows of metrics.jsonl. Rows with a ``loss`` are logging intervals, rows with a
            ``mean_iu`` are evaluations; values that are no finite numbers are left out.
    """
    panels = [panel for panel in _PANELS if any(len(_series(metrics, key)[0]) for key in panel)]
    return _plot(lambda theme: _curves(metrics, panels, theme)) if panels else None


def plot_confusion(scores: Scores, classes: Classes) -> Plot:
    """The confusion matrix, each row in parts of its true pixels, as a heat map with names."""
    return _plot(lambda theme: _confusion(scores, classes, theme))


def plot_images(mean_ius: Sequence[float]) -> Plot | None:
    """How many images have which mean IU; None with fewer than two that have one."""
    values = np.array([100 * value for value in mean_ius if not math.isnan(value)])
    return _plot(lambda theme: _images(values, theme)) if len(values) > 1 else None


def drawable(name: str, longest: int = 22) -> str:
    """A name in letters that the plot's font has (□ for others), and not too long."""
    known = _letters()
    shown = "".join(letter if ord(letter) in known else "□" for letter in name)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(_FONT)).get_charmap())


def _curves(
    metrics: Sequence[MetricsRow], panels: Sequence[tuple[str, ...]], theme: Theme
) -> Figure:
    figure = Figure(figsize=(3.7 * len(panels), 3.1), facecolor=theme.paper, layout="constrained")
    for column, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        _style(axes, theme)
        _PANELS[panel](axes, metrics, theme)
        axes.set_xlabel("step", color=theme.ink)
    return figure


def _confusion(scores: Scores, classes: Classes, theme: Theme) -> Figure:
    matrix = scores.confusion.astype(float)
    true = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, true, out=np.full_like(matrix, np.nan), where=true > 0)
    side = float(np.clip(2.2 + 0.42 * len(classes), 4.2, 16))
    figure = Figure(figsize=(side + 0.8, side), facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot()
    scale = LinearSegmentedColormap.from_list("shares", [theme.paper, theme.first])
    colours = scale.with_extremes(bad=theme.grid)
    heat = axes.imshow(shares, cmap=colours, vmin=0, vmax=1)
    names = [drawable(name) for name in classes.names]
    size = float(np.clip(260 / len(names), 3.5, 9))
    for axis, rotation in ((axes.xaxis, 45), (axes.yaxis, 0)):
        axis.set_ticks(range(len(names)), names, rotation=rotation, fontsize=size)
        axis.set_tick_params(length=0, labelcolor=theme.ink)
        for text in axis.get_ticklabels():
            text.set(parse_math=False, fontfamily=_FONT)
    for text in axes.get_xticklabels():
        text.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set_xlabel("predicted", color=theme.ink, fontfamily=_FONT)
    axes.set_ylabel("true", color=theme.ink, fontfamily=_FONT)
    axes.spines[:].set_visible(False)
    if len(names) <= 24:
        _write_shares(axes, shares, theme, size)
    bar = figure.colorbar(heat, ax=axes, fraction=0.04, pad=0.02, format=lambda x, _: f"{x:.0%}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.ink, length=0, labelsize=8)
    return figure


def _images(values: np.ndarray, theme: Theme) -> Figure:
    figure = Figure(figsize=(7.4, 2.6), facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot()
    _style(axes, theme)
    axes.hist(values, bins=range(0, 101, 2), color=theme.first, rwidth=0.88)
    median = float(np.median(values))
    axes.axvline(median, color=theme.second, linewidth=1.5, label=f"median {median:.1f}")
    axes.set_xlim(0, 100)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("mean IU of the image alone, %", color=theme.ink)
    axes.set_ylabel("images", color=theme.ink)
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8, loc="upper left")
    return figure


def _write_shares(axes: Axes, shares: np.ndarray, theme: Theme, size: float) -> None:
    """Percentages in all cells that hold half a percent or more."""
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = theme.paper if share > 0.5 else theme.ink
            text = "100" if share >= 0.9995 else f"{100 * share:.1f}".removesuffix(".0")
            cell = axes.text(
                column, row, text, color=colour, fontsize=size - 1.5, ha="center", va="center"
            )
            cell.set_in_layout(False)  # it lies inside; hundreds are measured for nothing


def _plot_loss(axes: Axes, metrics: Sequence[MetricsRow], theme: Theme) -> None:
    steps, losses = _series(metrics, "loss")
    _title(axes, "loss", theme)
    axes.plot(steps, losses, color=theme.first, alpha=0.3, linewidth=1)
    axes.plot(steps, smoothed(losses), color=theme.first, linewidth=1.8)
    if losses.min() > 0 and losses.max() > 20 * losses.min():
        axes.set_yscale("log")


def _plot_scores(axes: Axes, metrics: Sequence[MetricsRow], theme: Theme) -> None:
    _title(axes, "evaluation, %", theme)
    drawn = (("pixel_accuracy", theme.third), ("mean_iu", theme.second))
    for key, colour in drawn:
        steps, values = _series(metrics, key)
        if not len(steps):
            continue
        axes.plot(steps, 100 * values, color=colour, linewidth=1.8, marker="o", markersize=3)
        best = int(values.argmax())
        name = "mean IU" if key == "mean_iu" else key.replace("_", " ")
        axes.plot(
            steps[best], 100 * values[best], color=colour, marker="o", markersize=6,
            linewidth=0, label=f"{name}, best {100 * values[best]:.1f}",
        )  # fmt: skip
    axes.legend(frameon=False, labelcolor=theme.ink, fontsize=8, loc="best")
    axes.set_ylim(top=100)


def _plot_learning_rate(axes: Axes, metrics: Sequence[MetricsRow], theme: Theme) -> None:
    steps, rates = _series(metrics, "learning_rate")
    _title(axes, "learning rate", theme)
    axes.plot(steps, rates, color=theme.ink, linewidth=1.5)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    axes.yaxis.get_offset_text().set_color(theme.ink)
    axes.set_ylim(bottom=0)


_PANELS = {
    ("loss",): _plot_loss,
    ("pixel_accuracy", "mean_iu"): _plot_scores,
    ("learning_rate",): _plot_learning_rate,
}


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over a window of `SMOOTHING` of the length; shorter at the ends."""
    half = max(1, round(len(values) * SMOOTHING / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, len(values) - 1 - index), half)
    return np.asarray((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))


def _series(metrics: Sequence[MetricsRow], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of all rows that hold a finite number under ``key``, by step."""
    found = [
        (int(row["step"]), float(row[key]))
        for row in metrics
        if isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]
    found.sort(key=lambda pair: pair[0])
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def _title(axes: Axes, text: str, theme: Theme) -> None:
    axes.set_title(text, color=theme.ink, y=1)  # where it would go, found without a search


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.grid(visible=True, color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.margins(x=0.02)


def _plot(drawn: Callable[[Theme], Figure]) -> Plot:
    """Both versions of a figure, laid out once: colours move nothing."""
    light, dark = drawn(LIGHT), drawn(DARK)
    light_png = _png(light)
    dark.set_layout_engine("none")
    for axes, laid_out in zip(dark.axes, light.axes, strict=True):
        axes.set_position(laid_out.get_position(original=True))
    return Plot(light_png, _png(dark))


def _png(figure: Figure) -> bytes:
    """The figure drawn once; `Figure.savefig` draws it once more to lay it out beforehand."""
    figure.set_dpi(150)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    # Nothing shines through. Runs of one colour alone take half of zlib's time, for as few bytes.
    picture = Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))
    picture.save(buffer, "png", dpi=(150, 150), compress_type=zlib.Z_RLE)
    return buffer.getvalue()
