import math
from typing import Any

import pytest

from fcn.input import InputSpec


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channel_order": "bgr"}, "channel_order must be 'RGB' or 'BGR', found 'bgr'"),
        ({"std": (1, 0, 1)}, r"std three above 0, .* and \(1, 0, 1\)"),
        ({"std": (1, 1, -1)}, "std three above 0"),
        ({"std": (1, 1, math.nan)}, "std three above 0"),
        ({"mean": (0, math.inf, 0)}, "mean must be three finite numbers"),
        ({"mean": (0, 0)}, "mean must be three finite numbers"),
    ],
)
def test_inputs_that_no_network_can_see_are_refused(changes: dict[str, Any], reason: str) -> None:
    given: dict[str, Any] = {"channel_order": "RGB", "mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.raises(ValueError, match=reason):
        InputSpec(**(given | changes))
