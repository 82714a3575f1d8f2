import io
import threading

import numpy as np
import pytest
from PIL import Image

from fcn.classes import Classes
from fcn.metrics import Scores
from tasks.plots import drawable, plot_confusion, plot_curves, plot_images, smoothed

STEPS = [{"step": step, "loss": 2 / (step + 1), "learning_rate": 0.1} for step in range(40)]
EVALUATIONS = [{"step": step, "mean_iu": 0.5, "pixel_accuracy": 0.9} for step in (20, 40)]


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_curves_have_a_panel_for_what_the_rows_hold():
    all_panels, loss_and_rate = plot_curves(STEPS + EVALUATIONS), plot_curves(STEPS)
    three, two = (opened(plot.light).width for plot in (all_panels, loss_and_rate))
    assert three == pytest.approx(1.5 * two, rel=0.01)


@pytest.mark.parametrize("rows", [[], [{"step": 1, "loss": None}], [{"step": 1, "loss": np.nan}]])
def test_no_curves_without_a_finite_number(rows):
    assert plot_curves(rows) is None


def test_rows_of_a_run_with_a_gap_are_drawn_as_far_as_they_go():
    gap = [{"step": 5, "loss": float("inf")}, {"step": 3, "loss": None}]
    assert plot_curves(STEPS + gap) == plot_curves(STEPS)


def test_a_plot_of_one_row_is_drawn():
    assert opened(plot_curves([{"step": 1, "loss": 0.0}]).light).height > 100


def test_themes_differ_in_their_paper():
    scores, classes = Scores(np.eye(2, dtype=np.int64)), Classes.named(["a", "b"])
    light, dark = map(opened, plot_confusion(scores, classes))
    assert light.getpixel((0, 0)) == (255, 255, 255)
    assert dark.getpixel((0, 0)) == (0x1B, 0x1F, 0x24)


def test_both_themes_are_laid_out_alike():
    """What is drawn lies in the same places: it differs from its paper there, in both."""
    scores, classes = Scores(np.array([[3, 1], [0, 2]])), Classes.named(["a", "b"])
    plots = (
        plot_curves(STEPS + EVALUATIONS),
        plot_images([0.31, 0.94]),
        plot_confusion(scores, classes),
    )
    for plot in plots:
        light, dark = (np.asarray(opened(png)) for png in plot)
        drawn = [(picture != picture[0, 0]).any(axis=2) for picture in (light, dark)]
        assert (drawn[0] == drawn[1]).mean() > 0.999


def test_names_no_font_knows_and_formulas_are_drawn_as_text():
    classes = Classes.named(["車", "$\\frac{1}{", "a" * 300])
    scores = Scores(np.array([[5, 1, 0], [0, 0, 0], [0, 2, 2]]))
    assert opened(plot_confusion(scores, classes).light).width < 1500
    assert drawable("車x") == "□x"


def test_many_classes_stay_on_a_page():
    classes = Classes.named([f"class {index}" for index in range(150)])
    picture = opened(plot_confusion(Scores(np.eye(150, dtype=np.int64)), classes).light)
    assert max(picture.size) < 2700


def test_threads_draw_the_same_picture():
    losses = [{"step": row["step"], "loss": row["loss"]} for row in STEPS]
    drawn = []
    threads = [threading.Thread(target=lambda: drawn.append(plot_curves(losses))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == [drawn[0]] * 4


def test_images_are_drawn_where_two_or_more_have_a_score():
    assert plot_images([0.5]) is plot_images([0.5, np.nan]) is None
    few = plot_images([0.31, 0.94])
    assert plot_images([0.31, np.nan, 0.94]) == few != plot_images([0.31, 0.95, 0.94])
    assert opened(few.light).width > 3 * opened(few.light).height / 2


def test_smoothing_keeps_the_ends_and_a_straight_line():
    line = np.linspace(3, 8, 101)
    assert np.allclose(smoothed(line), line)
    assert smoothed(np.array([4.0])) == [4.0]
