import math

from fcn.train import Step
from tasks.train import best_mean_iu, summary


def step(number: int, loss: float, *, skipped: bool = False) -> Step:
    return Step(
        step=number, epoch=0, loss=loss, learning_rate=0.1, num_images=4, seconds=2.0, waited=0.5,
        ends_epoch=False, skipped=skipped,
    )  # fmt: skip


def test_the_best_of_the_evaluations() -> None:
    assert best_mean_iu([{"loss": 1.0}]) == -math.inf
    rows = [{"mean_iu": math.nan}, {"mean_iu": 0.4}, {"mean_iu": 0.3}, {"loss": 0.9}]
    assert best_mean_iu(rows) == 0.4


def test_skipped_steps_are_counted_and_have_no_loss() -> None:
    row = summary([step(1, 0.5), step(2, 0.0, skipped=True), step(3, 0.7)])
    assert (row["step"], row["loss"], row["skipped"]) == (3, 0.6, 1)
    assert (row["images_per_second"], row["waited"]) == (2, 0.25)
    assert summary([step(1, 0.0, skipped=True)])["loss"] is None
