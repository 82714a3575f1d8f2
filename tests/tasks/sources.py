"""Small labelled sources, made on the spot."""

import io
from collections.abc import Mapping
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image


def image_bytes(seed: int, size: tuple[int, int] = (6, 8), *, orientation: int = 1) -> bytes:
    """A PNG of noise, H x W as stored; another seed gives another image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    return _saved(Image.fromarray(pixels), exif=exif)


def mask_bytes(values: np.ndarray, *, palette: bool = True) -> bytes:
    """A PNG of values H x W: palette or gray; H x W x 3 gives colours."""
    image = Image.fromarray(values)
    if palette and values.ndim == 2:
        image.putpalette([channel for value in range(256) for channel in (value, 255 - value, 7)])
    return _saved(image)


def label(size: tuple[int, int] = (6, 8), num_classes: int = 3) -> np.ndarray:
    """A label map in which every class occurs."""
    return (np.arange(size[0] * size[1], dtype=np.uint8) % num_classes).reshape(size)


def write_files(url: str, files: Mapping[str, bytes | str]) -> str:
    """Put files below a URL of any store."""
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        if "://" in url:
            with fsspec.open(f"{url}/{path}", "wb") as file:
                file.write(data)
        else:
            target = Path(url, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return url


def folders(num: int = 10) -> dict[str, bytes | str]:
    """A good source of layout folders with three classes."""
    files: dict[str, bytes | str] = {"classes.txt": "sky\nroad\ntree\n"}
    for index in range(num):
        files[f"images/{index:02d}.png"] = image_bytes(index)
        files[f"masks/{index:02d}.png"] = mask_bytes(label())
    return files


def _saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()
