"""Whatever the short way says of a JPEG's size, Pillow says too."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from fcn.errors import ImageError
from fcn.headers import plain_jpeg_size
from fcn.images import MAX_PIXELS, image_size


def jpeg(mode: str = "RGB", size: tuple[int, int] = (56, 40), **settings: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(values).convert(mode).save(file, "JPEG", **settings)
    return file.getvalue()


PLAIN = {
    "baseline": jpeg(),
    "gray": jpeg("L"),
    "progressive": jpeg(progressive=True),
    "optimised": jpeg(optimize=True, quality=95),
    "full colour": jpeg(subsampling=0),
    "comment": jpeg(comment=b"a comment"),
    "restarts": jpeg(restart_marker_rows=1),
    "wide": jpeg(size=(3000, 1)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_sizes_of_plain_jpegs_are_read(name: str) -> None:
    assert plain_jpeg_size(PLAIN[name]) == image_size(PLAIN[name])


def test_what_is_not_plain_is_left_to_others() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    others = [
        jpeg(exif=exif),
        jpeg("CMYK"),
        jpeg(icc_profile=b"a profile"),
        jpeg()[:200],
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8" + b"\xff\xfe\0\2" * 10_000 + jpeg()[2:],  # segments without end
    ]
    assert [plain_jpeg_size(data) for data in others] == [None] * len(others)


def test_damage_is_never_read_over(rng: np.random.Generator) -> None:
    """Changed and cut bytes of headers: the same size as Pillow's, or no word."""
    heads = {name: data.index(b"\xff\xda") + 16 for name, data in PLAIN.items()}
    read = 0
    for turn in range(6000):
        name = list(PLAIN)[turn % len(PLAIN)]
        data = bytearray(PLAIN[name])
        for _ in range(1 + turn % 3):
            data[rng.integers(2, heads[name])] = rng.integers(256)
        if turn % 5 == 0:
            del data[rng.integers(2, heads[name]) :]
        size = plain_jpeg_size(bytes(data))
        if size is not None and size[0] * size[1] <= MAX_PIXELS:
            read += 1
            try:
                expected = image_size(bytes(data))
            except ImageError as error:
                pytest.fail(f"{name}: {error}, but {size} was read from {bytes(data)[:600]!r}")
            assert size == expected
    assert read > 1000
