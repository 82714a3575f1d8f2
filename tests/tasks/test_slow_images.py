"""Which images of a run took longest."""

from tasks.slow_images import NUM_IMAGES, slow_images, slowest
from tests.tasks.test_parts import failed, row


def test_slowest_come_first_and_those_that_were_not_read_are_left_out() -> None:
    rows = [*(row(f"{number:02d}") for number in range(NUM_IMAGES + 2)), failed("x"), failed("y")]
    seconds = {f"{number:02d}": (number * 5 % 12) / 4 for number in range(12)} | {"x": 20.0}
    found = slow_images(rows, seconds)
    assert [image.seconds for image in found] == [20.0, *(n / 4 for n in range(11, 2, -1))]
    assert [(image.key, image.status) for image in found[:2]] == [("x", "failed"), ("07", "ok")]
    assert (found[0].height, found[1].height) == (rows[-2].height, rows[7].height)
    assert slowest([*found[4:], *found[:4]]) == found
