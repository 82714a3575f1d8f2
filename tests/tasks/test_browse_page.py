"""The page of a prediction: which images it shows, and that it needs and loads nothing else."""

import re
from pathlib import Path

import numpy as np
import pytest

from tasks import browse_page, stores
from tasks.browse_page import Choice, Section, choose, pictures, render
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with
from tests.tasks.pictures import CLASSES, Brightness, encoded, planned, put
from tests.tasks.test_parts import commit, failed, row


def flat(level: int, part_of: int = 12) -> bytes:
    """An image whose first rows have one brightness and whose others are dark."""
    image = np.zeros((12, 16, 3), np.uint8)
    image[:part_of] = level
    return encoded(image)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Four images with more and more of the bright class, one with the medium one, one bad."""
    collection, url = str(tmp_path / "in"), str(tmp_path / "out")
    put(collection, {f"bright{part}.png": flat(250, part) for part in (1, 2, 3, 4)})
    put(collection, {"medium.png": flat(100), "<b>bad.png": b"bad"})
    manifest = planned(url, list(stores.list_entries(collection)), PredictConfig())
    write_part_with(Brightness(), manifest, 0, PredictConfig())
    return url


def page_of(output: str, count: int = 2, seed: int = 0) -> str:
    choice = choose(output, CLASSES, count=count, seed=seed)
    found = pictures(output, choice.keys, CLASSES)
    return render(output, choice, found, CLASSES, seed).decode()


def sections_of(choice: Choice) -> dict[str, list[str]]:
    return {section.heading: section.keys for section in choice.sections}


def test_sections_are_random_least_confident_and_most_of_each_class(tmp_path: Path) -> None:
    url = str(tmp_path)
    rows = [
        row(f"{number:03d}", confidence=0.5 + number / 1000, class_pixels=[600 - number, number, 0])
        for number in range(300)
    ]
    commit(url, [*rows, failed("x")])
    commit(url, [row("250", confidence=0.1, class_pixels=[300, 300, 0])], run=1)

    choice = choose(url, CLASSES, count=2, seed=0)

    sections = sections_of(choice)
    random = sections.pop("Random")
    assert len(random) == 2
    assert sections == {
        "Least confident": ["250", "000"],
        "Most dark": ["001", "002"],
        "Most medium": ["299", "298"],
    }
    assert not set(random) & {"250", "000", "001", "002", "299", "298"}
    assert choice.failures == [("x", "CorruptImage", "why")]
    assert choice.statuses == {"ok": 300, "failed": 1}
    assert choice.pixels.sum() == 600 * 300


def test_no_image_is_in_two_sections(output: str) -> None:
    sections = sections_of(choose(output, CLASSES, count=2, seed=0))
    shown = [key for keys in sections.values() for key in keys]
    assert len(shown) == len(set(shown)) == 5


def test_choice_depends_on_rows_and_seed_and_not_on_parts(tmp_path: Path) -> None:
    rows = [row(f"{number:03d}", class_pixels=[1, 2, 3]) for number in range(60)]
    one, many = str(tmp_path / "one"), str(tmp_path / "many")
    commit(one, rows)
    for number in range(6):
        commit(many, rows[10 * number : 10 * number + 10], number=number)
    chosen = [choose(url, CLASSES, count=5, seed=7) for url in (one, many)]
    assert chosen[0].sections == chosen[1].sections
    assert choose(one, CLASSES, count=5, seed=8).sections[0] != chosen[0].sections[0]


def test_page_needs_nothing_and_escapes_what_strangers_named(output: str) -> None:
    page = page_of(output)
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,|#)', page) == []
    assert "default-src 'none'" in page
    assert "&lt;b&gt;bad.png" in page
    assert "<b>bad" not in page
    assert "UnsupportedImage" in page
    assert page.count("<figure>") == len(set(re.findall(r'alt="mask of ([^"]+)"', page)))


def test_image_that_is_gone_is_shown_by_its_mask_alone(output: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "medium.png").unlink()
    [picture] = pictures(output, ["medium.png"], CLASSES)
    assert picture.image is None
    assert "no image: nothing there: gone since it was listed" in picture.text
    assert 'class="pair alone"' in page_of(output, count=5)


def test_page_is_bounded_and_says_what_it_left_out(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["bright1.png", "bright2.png", "medium.png"]
    sizes = [picture.num_bytes for picture in pictures(output, keys, CLASSES)]
    monkeypatch.setattr(browse_page, "MAX_PAGE_BYTES", sum(sizes) - 1)
    section = Section(heading="Random", class_index=None, keys=keys)
    choice = Choice(sections=[section], pixels=np.array([1, 0, 0]))
    page = render(output, choice, pictures(output, keys, CLASSES), CLASSES, 0).decode()
    assert page.count("<figure>") == 2
    assert "1 chosen images are left out" in page
