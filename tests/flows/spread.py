"""A prediction to be spread out, and all that it leaves."""

from pathlib import Path

import numpy as np

from tasks import stores
from tests.tasks.pictures import encoded, pixels, put, save_model


def make_given(folder: Path) -> tuple[str, str]:
    """URLs of thirteen images, one of them large, and a bad one, and of a model."""
    rng = np.random.default_rng(0)
    put(f"{folder}/in", {f"{n:02}.png": encoded(pixels(rng, 60 + n, 80)) for n in range(12)})
    large = encoded(pixels(rng, 1420, 1420))  # for one core alone, where there are two
    put(f"{folder}/in", {"bad.jpg": b"no image", "large.png": large})
    return f"{folder}/in", save_model(folder / "model.safetensors", bias=10_000.0)


def objects(output: str) -> dict[str, bytes]:
    """Everything that an output holds."""
    return {entry.key: stores.read_bytes(entry.url) for entry in stores.list_entries(output)}
