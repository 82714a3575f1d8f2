"""The table of the classes that an evaluation shows."""

import numpy as np

from fcn.evaluate import SplitScores
from fcn.intervals import Interval, Intervals
from fcn.metrics import Scores
from tasks.evaluate import class_rows
from tests.tasks.labelled import make_dataset


def test_the_table_ends_with_the_means_and_their_intervals(tmp_path):
    result = SplitScores(
        scores=Scores(np.array([[1500, 500], [0, 1000]])),
        intervals=Intervals(
            mean_iu=Interval(low=0.6, high=0.75), pixel_accuracy=Interval(low=0.8, high=0.851)
        ),
        boundary_f1=np.array([0.5, 0.25]),
        images=[],
    )
    ground, square, mean, every = class_rows(result, make_dataset(str(tmp_path / "set")))
    assert ground == {
        "class": "ground",
        "IU": "75.0 %",
        "accuracy": "75.0 %",
        "boundary F1": "50.0 %",
        "pixels": "2,000",
    }
    assert (square["IU"], square["boundary F1"]) == ("66.7 %", "25.0 %")
    assert mean["IU"] == "70.8 % (60.0–75.0 %)"
    assert (mean["boundary F1"], mean["pixels"]) == ("37.5 %", "3,000")
    assert every["accuracy"] == "83.3 % (80.0–85.1 %)"
