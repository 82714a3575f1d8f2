"""What to label next: images the model is not sure about, and classes that have moved."""

from pathlib import Path

import pytest

from tasks import parts
from tasks.weak_spots import class_shares, weak_spots, weak_spots_of, weakest
from tests.tasks.pictures import CLASSES
from tests.tasks.test_parts import commit, failed, row

ROWS = [
    *(row(f"{number:02d}", confidence=(number * 7 % 20) / 20) for number in range(20)),
    failed("x"),
]


def test_least_confident_rows_are_the_same_in_memory_and_in_a_part(tmp_path: Path) -> None:
    commit(str(tmp_path), ROWS)
    [part] = parts.committed(str(tmp_path))
    spots = weak_spots(ROWS)
    assert [spot.key for spot in spots[:3]] == ["00", "03", "06"]
    assert [spot.confidence for spot in spots[:3]] == [0.0, 0.05, 0.1]
    found = weak_spots_of(str(tmp_path), part)
    assert [spot.key for spot in found] == [spot.key for spot in spots]
    assert found[1].confidence == pytest.approx(0.05)
    assert found[0].class_pixels == (1, 2, 3)
    assert weakest([*found[5:], *found[:5]], count=2) == found[:2]


def test_shares_are_compared_with_those_of_the_run_before(tmp_path: Path) -> None:
    commit(str(tmp_path), [row("a", class_pixels=[3, 1, 0]), failed("b")])
    commit(str(tmp_path), [failed("c")], number=1)
    commit(str(tmp_path), [row("a", class_pixels=[1, 1, 2])], run=1)
    cards = parts.committed(str(tmp_path))
    shares = class_shares(cards[2:], cards[:2], CLASSES)
    assert [(share.name, share.pixels, share.share) for share in shares] == [
        ("dark", 1, 0.25),
        ("medium", 1, 0.25),
        ("bright", 2, 0.5),
    ]
    assert [share.drift for share in shares] == [-0.5, 0.0, 0.5]
    assert [share.before for share in class_shares(cards[:2], [], CLASSES)] == [None] * 3
