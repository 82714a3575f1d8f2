"""Masks in parts and as objects, and what it means that one cannot be saved."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn.masks import decode_mask
from tasks import stores
from tasks.engine import segment
from tasks.predict_config import PredictConfig
from tasks.seconds import Seconds
from tasks.shards import mask_saver
from tasks.stores import StoreError, StoreUnavailable
from tests.tasks.pictures import Brightness, encoded, pixels, put


def test_png_sink_gets_every_mask(tmp_path: Path, rng: np.random.Generator) -> None:
    put(str(tmp_path), {"a.png": encoded(pixels(rng)), "b/c.png": encoded(pixels(rng))})
    saved: dict[str, bytes] = {}

    def save(key: str, png: bytes) -> str:
        saved[key] = png
        return f"memory://masks/{key}.png"

    entries = list(stores.list_entries(str(tmp_path)))
    config = PredictConfig(sinks=("png",))
    rows = segment(entries, Brightness(), config, seconds=Seconds(), save_mask=save)

    assert all(row.mask is None for row in rows)
    assert [row.mask_path for row in rows] == [
        "memory://masks/a.png.png",
        "memory://masks/b/c.png.png",
    ]
    with Image.open(io.BytesIO(saved["b/c.png"])) as image:
        assert image.mode == "P"


def test_mask_that_cannot_be_saved_fails_its_image_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    long = f"{'x' * 248}.png"  # a name may have 255 bytes, and the mask's has four more
    put(str(tmp_path / "in"), {key: encoded(pixels(rng)) for key in (long, "a", "a.png/b", "c")})
    entries = list(stores.list_entries(str(tmp_path / "in")))
    config, save = PredictConfig(sinks=("parquet", "png")), mask_saver(str(tmp_path / "out"))

    rows = segment(entries, Brightness(), config, seconds=Seconds(), save_mask=save)

    failed = {row.entry.key: row for row in rows if row.status == "failed"}
    assert len(failed) == 2
    assert failed.keys() - {"a", "a.png/b"} == {long}  # of the other two either may be first
    assert {row.error_class for row in failed.values()} == {"MaskNotSaved"}
    assert "name too long" in str(failed[long].error)
    assert (failed[long].height, failed[long].mask) == (12, None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_full_disk_or_failing_store_is_no_fault_of_the_images(
    number: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    put(str(tmp_path), {"a.png": encoded(pixels(rng))})
    error = StoreUnavailable("out") if number == errno.EIO else StoreError("full")
    error.__cause__ = OSError(number, os.strerror(number))

    def save(key: str, png: bytes) -> str:
        raise error

    entries = list(stores.list_entries(str(tmp_path)))
    with pytest.raises(StoreError) as caught:
        segment(entries, Brightness(), PredictConfig(), seconds=Seconds(), save_mask=save)
    assert caught.value is error


def test_run_lengths_beside_png_objects(tmp_path: Path, rng: np.random.Generator) -> None:
    put(str(tmp_path), {"a.png": encoded(pixels(rng))})
    saved: dict[str, bytes] = {}
    config = PredictConfig(sinks=("parquet", "png"), mask_format="rle")
    [row] = segment(
        list(stores.list_entries(str(tmp_path))),
        Brightness(),
        config,
        seconds=Seconds(),
        save_mask=lambda key, png: saved.setdefault(key, png) and "",
    )
    assert row.mask is not None
    assert row.mask.startswith(b"FCNR")
    assert (decode_mask(row.mask) == decode_mask(saved["a.png"])).all()
