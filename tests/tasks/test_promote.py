"""The rule: when a challenger takes the place of the model that serves."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prefect import flow

from fcn.classes import Classes
from fcn.intervals import UNKNOWN, Interval
from tasks.dataset import DatasetInfo
from tasks.promote import (
    Contender,
    PromoteConfig,
    PromoteSummary,
    comparison_rows,
    decide,
    settle,
)
from tests.tasks.test_serving import promotion

GAIN = Interval(low=0.011, high=0.03)


def contender(digit: str, mean_iu: float = 0.5) -> Contender:
    return Contender(
        url=f"{digit}.safetensors",
        data=b"",
        sha256=digit * 64,
        tallies=np.zeros((2, 3, 2), np.int64),
        mean_iu=mean_iu,
        interval=Interval(low=mean_iu - 0.1, high=mean_iu + 0.1),
    )


@pytest.mark.parametrize(
    ("gain", "config", "is_promoted"),
    [
        (GAIN, PromoteConfig(), True),
        (GAIN, PromoteConfig(min_gain=0.011), False),
        (GAIN, PromoteConfig(min_gain=0.01), True),
        (Interval(low=0.0, high=0.4), PromoteConfig(), False),
        (Interval(low=-0.004, high=0.4), PromoteConfig(), False),
        (Interval(low=-0.004, high=0.4), PromoteConfig(min_gain=-0.005), True),
        (UNKNOWN, PromoteConfig(min_gain=-1), False),
        (UNKNOWN, PromoteConfig(rule="always"), True),
        (Interval(low=-0.4, high=-0.3), PromoteConfig(rule="always"), True),
    ],
)
def test_the_lower_end_of_the_gain_decides(
    gain: Interval, config: PromoteConfig, is_promoted: bool
) -> None:
    assert decide(promotion(0), contender("b"), gain, config)[0] is is_promoted


def test_the_first_model_is_promoted_and_the_serving_one_is_not_again() -> None:
    always = PromoteConfig(rule="always")
    assert decide(None, contender("a"), UNKNOWN, PromoteConfig()) == (
        True,
        "no model served before",
    )
    assert decide(promotion(0), contender("a"), GAIN, always) == (
        False,
        "this very model serves already",
    )


def test_the_reason_gives_the_figures() -> None:
    _, reason = decide(promotion(0), contender("b"), GAIN, PromoteConfig(min_gain=0.02))
    assert reason == (
        "the gain in mean IU is at least +1.10 points (95 %), not above min_gain=+2.00 points"
    )


def test_the_table_has_both_models_and_the_gain() -> None:
    rows = comparison_rows(contender("b", 0.52), contender("a"), 0.02, GAIN)
    assert [row["model"] for row in rows] == [
        "challenger b.safetensors",
        "champion a.safetensors",
        "gain",
    ]
    assert rows[2]["mean IU"] == "+2.00 points (+1.10 to +3.00)"
    (alone,) = comparison_rows(contender("b"), None, math.nan, UNKNOWN)
    assert alone == {
        "model": "challenger b.safetensors",
        "SHA-256": "b" * 12,
        "mean IU": "50.0 % (40.0–60.0 %)",
    }


def test_of_several_heads_the_first_decides_and_the_others_are_shown() -> None:
    challenger = replace(contender("b", 0.52), further_mean_iu={"geo": 0.4})
    champion = replace(contender("a"), further_mean_iu={"geo": 0.45})
    is_promoted, reason = decide(promotion(0), challenger, GAIN, PromoteConfig())
    assert is_promoted
    assert reason.startswith("the gain in mean IU of the first head is at least +1.10 points")
    rows = comparison_rows(challenger, champion, 0.02, GAIN)
    assert [row["mean IU, geo"] for row in rows] == ["40.0 %", "45.0 %", "-5.00 points"]


def test_what_a_further_head_scores_is_unknown_without_a_pixel_of_it(
    prefect_server: None, tmp_path: Path
) -> None:
    classes = Classes.named(("a", "b"))
    info = DatasetInfo(
        url="set", classes=classes, splits={}, source="", audit=[], digest="", settings={}
    )
    one = replace(contender("a"), further_mean_iu={"geo": math.nan, "layout": 0.4})

    @flow
    def promoting() -> PromoteSummary:
        return settle(info, str(tmp_path), "val", promotion(0), one, one, PromoteConfig())

    summary = promoting()
    assert summary.further_mean_iu == {"geo": None, "layout": 0.4}
    assert summary.champion_further_mean_iu == summary.further_mean_iu
