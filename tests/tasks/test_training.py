import json
import math

import numpy as np

from fcn.metrics import Scores
from fcn.train import Step
from tasks.training import best_mean_iu, evaluation_row, summary


def step(number: int, loss: float, *, skipped: bool = False) -> Step:
    return Step(
        step=number, epoch=0, loss=loss, learning_rate=0.1, num_images=4, seconds=2.0, waited=0.5,
        ends_epoch=False, skipped=skipped,
    )  # fmt: skip


def test_the_best_of_the_evaluations() -> None:
    assert best_mean_iu([{"loss": 1.0}]) == -math.inf
    rows = [{"mean_iu": None}, {"mean_iu": 0.4}, {"mean_iu": 0.3}, {"loss": 0.9}]
    assert best_mean_iu(rows) == 0.4


def test_skipped_steps_are_counted_and_have_no_loss() -> None:
    row = summary([step(1, 0.5), step(2, 0.0, skipped=True), step(3, 0.7)])
    assert (row["step"], row["loss"], row["skipped"]) == (3, 0.6, 1)
    assert (row["images_per_second"], row["waited"]) == (2, 0.25)
    assert summary([step(1, 0.0, skipped=True)])["loss"] is None


def test_an_evaluation_of_no_pixels_is_json() -> None:
    row = evaluation_row(step(1, 0.5), Scores(np.zeros((2, 2), np.int64)))
    text = json.dumps(row, allow_nan=False)
    assert json.loads(text)["mean_iu"] is None
    assert row["iu"] == [None, None]
    assert best_mean_iu([row]) == -math.inf
