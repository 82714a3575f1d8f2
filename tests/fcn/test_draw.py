from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFont

from fcn.classes import Classes
from fcn.draw import (
    IGNORED,
    Panel,
    _font,
    colourise,
    contact_sheet,
    error_map,
    jpeg_bytes,
    overlay,
    png_bytes,
)
from fcn.errors import LabelError

CLASSES = Classes(("sky", "road"), ((10, 20, 200), (200, 100, 0)))
LABEL = np.array([[0, 1, 255]], np.uint8)


def test_colourise_gives_each_class_its_colour() -> None:
    assert colourise(LABEL, CLASSES).tolist() == [[[10, 20, 200], [200, 100, 0], list(IGNORED)]]
    assert colourise(LABEL, CLASSES).dtype == np.uint8


def test_colourise_knows_another_ignore_index() -> None:
    classes = Classes(("sky", "road"), CLASSES.palette, ignore_index=11)
    assert colourise(np.array([[11]]), classes).tolist() == [[list(IGNORED)]]


@pytest.mark.parametrize("stray", [2, 254])
def test_colourise_refuses_what_is_no_class(stray: int) -> None:
    with pytest.raises(LabelError, match=rf"label holds class {stray} in 1 pixel; .* 0\.\.1"):
        colourise(np.array([[stray]], np.uint8), CLASSES)


def test_overlay_mixes_and_leaves_ignored_pixels() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    tinted = overlay(image, LABEL, CLASSES, alpha=0.25)
    assert tinted.tolist() == [[[78, 80, 125], [125, 100, 75], [100, 100, 100]]]
    assert tinted.dtype == np.uint8


def test_overlay_runs_from_the_image_to_the_colours(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (8, 9, 3), np.uint8)
    label = rng.integers(0, 2, (8, 9), np.uint8)
    np.testing.assert_array_equal(overlay(image, label, CLASSES, alpha=0), image)
    colours = colourise(label, CLASSES)
    np.testing.assert_array_equal(overlay(image, label, CLASSES, alpha=1), colours)


def test_overlay_refuses_a_label_of_another_size() -> None:
    with pytest.raises(LabelError, match=r"label has shape \(1, 3\) but its image \(2, 3, 3\)"):
        overlay(np.zeros((2, 3, 3), np.uint8), LABEL, CLASSES)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_overlay_refuses_an_alpha_outside_0_to_1(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be within"):
        overlay(np.zeros((1, 3, 3), np.uint8), LABEL, CLASSES, alpha=alpha)


def test_error_map_shows_wrong_red_right_gray_ignored_black() -> None:
    (wrong, right, ignored), *_ = error_map(LABEL, np.array([[1, 1, 0]], np.uint8)).tolist()
    assert wrong[0] > 150 > 60 > max(wrong[1:])
    assert right[0] == right[1] == right[2] > 100
    assert ignored == [0, 0, 0]
    with pytest.raises(LabelError, match="shape"):
        error_map(LABEL, LABEL.T)


def test_png_keeps_pixels_and_jpeg_nearly(rng: np.random.Generator) -> None:
    image = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png_bytes(image)))), image)
    with Image.open(BytesIO(jpeg_bytes(image))) as jpeg:
        assert jpeg.format == "JPEG"
        assert np.abs(np.asarray(jpeg).astype(int) - image).mean() < 12
    assert len(jpeg_bytes(image, quality=30)) < len(jpeg_bytes(image, quality=95))


def solid(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def extent(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the pixels of one colour."""
    rows, columns = np.nonzero((sheet == colour).all(axis=-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_panels_of_a_row_have_the_same_height_and_do_not_touch() -> None:
    red, blue, green = (250, 0, 0), (0, 0, 250), (0, 250, 0)
    sheet = contact_sheet(
        [
            [Panel(image=solid(300, 500, red)), Panel(image=solid(60, 40, blue))],
            [Panel(image=solid(10, 10, green))],
        ],
        panel_height=120,
    )
    assert sheet.dtype == np.uint8
    first, second, below = (extent(sheet, colour) for colour in (red, blue, green))
    assert first[0] == second[0] > 0
    assert first[1] == second[1] == first[0] + 120
    assert (first[3] - first[2], second[3] - second[2]) == (200, 80)
    assert second[2] > first[3]
    assert below[0] > first[1]
    assert below[2] == first[2]
    for border in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]):
        assert (border == 255).all()


def test_very_wide_pictures_stay_on_the_sheet() -> None:
    sheet = contact_sheet([[Panel(image=solid(10, 4000, (250, 0, 0)))]], panel_height=100)
    assert sheet.shape[1] < 300


def test_caption_title_and_legend_add_ink_where_they_belong() -> None:
    image = solid(60, 200, (250, 0, 0))
    bare = contact_sheet([[Panel(image=image)]], panel_height=60)
    captioned = contact_sheet([[Panel(image=image, caption="key\nmean IU")]], panel_height=60)
    assert (captioned[extent(captioned, (250, 0, 0))[1] + 2 :] < 100).all(axis=-1).any()
    assert not (bare[extent(bare, (250, 0, 0))[1] + 2 :] < 100).all(axis=-1).any()
    titled = contact_sheet([[Panel(image=image)]], panel_height=60, title="Worst images")
    assert (titled[: extent(titled, (250, 0, 0))[0] - 2] < 100).all(axis=-1).any()
    legend = contact_sheet([[Panel(image=image)]], panel_height=60, classes=CLASSES)
    below = extent(legend, (250, 0, 0))[1]
    for colour in (*CLASSES.palette, IGNORED):
        assert extent(legend, colour)[0] > below


def test_legend_of_many_classes_wraps() -> None:
    classes = Classes.named(f"class number {number}" for number in range(40))
    panel = [[Panel(image=solid(60, 60, (250, 1, 0)))]]
    sheet = contact_sheet(panel, classes=classes, panel_height=300)
    lefts = {extent(sheet, colour)[2] for colour in classes.palette}
    tops = {extent(sheet, colour)[0] for colour in classes.palette}
    assert len(tops) > 5
    assert max(lefts) < sheet.shape[1]


def test_a_long_caption_does_not_run_into_the_next_panel() -> None:
    image = solid(60, 60, (250, 0, 0))
    sheet = contact_sheet(
        [[Panel(image=image, caption="very/long/key/" * 9), Panel(image=image)]], panel_height=60
    )
    below = sheet[extent(sheet, (250, 0, 0))[1] + 2 :]
    ink = np.nonzero((below < 100).all(axis=-1))[1]
    assert ink.size
    assert ink.max() <= 20 + 60 + 2


def test_gray_panels_are_shown() -> None:
    sheet = contact_sheet([[Panel(image=np.full((20, 20), 77, np.uint8))]], panel_height=50)
    assert (sheet == 77).all(axis=-1).sum() == 50 * 50


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_a_sheet_needs_a_panel(rows: list[list[Panel]]) -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        contact_sheet(rows)


def test_captions_need_a_pillow_with_freetype(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ImageFont.load_default` gives it where Pillow was built without."""
    plain = ImageFont.load_default_imagefont()
    monkeypatch.setattr(ImageFont, "load_default", lambda size: plain)
    _font.cache_clear()
    panel = Panel(image=np.zeros((4, 4, 3), np.uint8), caption="x")
    with pytest.raises(RuntimeError, match="without FreeType, which captions need; install one"):
        contact_sheet([[panel]])
