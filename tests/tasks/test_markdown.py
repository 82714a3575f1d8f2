import base64
import io

import numpy as np
from PIL import Image

from tasks import markdown


def opened(data_url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data_url.partition(",")[2])))


def test_escape_leaves_no_markup_and_one_line():
    assert markdown.escape("a|b\n<script>[x](y)") == r"a\|b \<script\>\[x\]\(y\)"


def test_escape_makes_undecodable_file_names_fit_for_a_page():
    assert markdown.escape("scene\udce9.jpg").encode("utf-8") == b"scene?.jpg"


def test_table_escapes_pipes_and_aligns_numbers_right():
    text = markdown.table(["class", "IU"], [["road|kerb", "93.1 %"], ["sky", "–"]])
    assert text.splitlines() == [
        "| class | IU |",
        "| --- | ---: |",
        r"| road\|kerb | 93.1 % |",
        r"| sky | – |",
    ]


def test_pictures_stand_in_tables():
    picture = markdown.image(np.zeros((2, 2, 3), np.uint8), "dot")
    assert f"| {picture} | a\\|b |" in markdown.table(["", "class"], [[picture, "a|b"]])


def test_image_url_holds_the_whole_picture_within_the_width(rng):
    picture = rng.integers(0, 256, (300, 600, 3), dtype=np.uint8)
    url = markdown.image_url(picture, max_width=200)
    assert url.startswith("data:image/jpeg;base64,")
    assert opened(url).size == (200, 100)


def test_image_takes_bytes_and_keeps_small_pictures_at_their_size():
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 30), (255, 0, 0, 128)).save(buffer, "PNG")
    text = markdown.image(buffer.getvalue(), "red]box")
    assert text.startswith(r"![red\]box](data:image/jpeg;base64,")
    assert opened(text[text.index("data:") : -1]).size == (40, 30)


def test_png_pictures_keep_every_pixel(rng):
    picture = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(opened(markdown.image_url(picture, picture_format="PNG")), picture)
