"""Which loss refuses a quantised model: of several heads that of any."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tasks.quantise import QuantiseError, QuantiseSummary, require_accurate

SUMMARY = QuantiseSummary(
    quantised_url="q", split="val", num_images=3, mean_iu=0.8, quantised_mean_iu=0.798,
    pixel_accuracy=0.9, quantised_pixel_accuracy=0.9,
    further_mean_iu={"geo": 0.6}, quantised_further_mean_iu={"geo": 0.597},
)  # fmt: skip


def test_what_every_head_stands_is_accepted() -> None:
    require_accurate(SUMMARY, 0.5)
    require_accurate(replace(SUMMARY, further_mean_iu={}, quantised_further_mean_iu={}), 0.5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"quantised_mean_iu": 0.7},
            r"^quantised, the model scores a mean IU of 70\.00 % on val, 10\.00 points less",
        ),
        (
            {"quantised_further_mean_iu": {"geo": 0.59}},
            r"^quantised, the model scores with its head geo a mean IU of 59\.00 % on val, 1\.00 ",
        ),
        ({"mean_iu": math.nan}, "^no pixel of val is labelled, "),
        ({"quantised_further_mean_iu": {"geo": math.nan}}, "^no pixel of val .* for head geo, "),
    ],
)
def test_a_loss_of_any_head_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(QuantiseError, match=text):
        require_accurate(replace(SUMMARY, **changes), 0.5)
