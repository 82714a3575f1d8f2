"""Folders of bands become columns; what is wrong with a band is found before anything is there."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image

from fcn.bands import Band, decode_band
from tasks.audit import audit
from tasks.class_files import find_classes
from tasks.dataset import DatasetError, DatasetInfo, Finding, open_split, read_info
from tasks.layouts import find_samples
from tasks.staging import Staging
from tests.tasks.sources import folders, write_files


def band_bytes(values: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def depth(index: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 5000, size, np.uint16)


def height(index: int, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    values = np.random.default_rng(index).normal(300, 20, size).astype(np.float32)
    values[0, 0] = np.nan
    return values


def banded(num: int = 6) -> dict[str, bytes | str]:
    """A good source with a band of 16 bits and one of floats."""
    files = folders(num)
    for index in range(num):
        files[f"bands-depth/{index:02d}.png"] = band_bytes(depth(index))
        files[f"bands-height/{index:02d}.tif"] = band_bytes(height(index), "TIFF")
    return files


def ingested(folder: Path, files: dict[str, bytes | str]) -> tuple[DatasetInfo, list[Finding]]:
    source = find_samples(write_files(str(folder / "source"), files))
    table = find_classes(source)
    assert table is not None
    with Staging(table.classes, bands=source.bands) as staging:
        findings = audit(source, table, staging)
        info, _ = staging.publish(str(folder / "dataset"), source="here", audit=findings)
    return info, findings


def test_bands_become_columns_with_figures_of_train(tmp_path: Path) -> None:
    info, findings = ingested(tmp_path, banded())
    assert findings == []
    assert read_info(info.url) == info
    content = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert [band["name"] for band in content["bands"]] == ["depth", "height"]

    samples = open_split(info, "train", tmp_path / "cache")
    values = {"depth": [], "height": []}
    for sample in samples:
        for name, data in sample.bands.items():
            assert data is not None
            values[name].append(decode_band(data))
        assert np.array_equal(values["depth"][-1], depth(int(sample.key)))
    for band, dtype in zip(info.bands, ("uint16", "float32"), strict=True):
        assert band.dtype == dtype
        known = np.stack(values[band.name]).astype(np.float64)
        assert band.mean == pytest.approx(np.nanmean(known), rel=1e-9)
        assert band.std == pytest.approx(np.nanstd(known), rel=1e-6)

    rows = load_dataset(info.url, cache_dir=str(tmp_path / "hf"))["train"]
    assert np.array_equal(decode_band(rows[0]["band_depth"]), depth(int(rows[0]["key"])))


def test_a_dataset_without_bands_says_nothing_of_them(tmp_path: Path) -> None:
    info, _ = ingested(tmp_path, folders(4))
    assert "bands" not in json.loads((tmp_path / "dataset/dataset.json").read_text())
    names = pq.read_schema(tmp_path / "dataset" / info.splits["train"].files[0]).names
    assert names == ["key", "image", "label", "height", "width"]


def test_the_same_images_with_another_band_are_another_dataset(tmp_path: Path) -> None:
    info, _ = ingested(tmp_path / "a", banded())
    files = banded() | {"bands-depth/03.png": band_bytes(depth(99))}
    other, _ = ingested(tmp_path / "b", files)
    assert other.digest != info.digest


def test_a_band_that_is_the_same_everywhere_has_deviation_one(tmp_path: Path) -> None:
    files = folders(3)
    for index in range(3):
        files[f"bands-flat/{index:02d}.tif"] = band_bytes(np.full((6, 8), 0.1, np.float32), "TIFF")
        unknown = np.full((6, 8), np.nan, np.float32)
        files[f"bands-none/{index:02d}.tif"] = band_bytes(unknown, "TIFF")
    info, _ = ingested(tmp_path, files)
    flat, none = info.bands
    assert (flat.mean, flat.std) == (pytest.approx(0.1), 1.0)
    assert none == Band("none", "float32", 0.0, 1.0)


def test_what_is_wrong_with_bands_is_found(tmp_path: Path) -> None:
    files = banded(8)
    del files["bands-depth/00.png"]
    files |= {
        "bands-depth/01.png": band_bytes(depth(1, (8, 6))),
        "bands-depth/02.png": b"no image",
        "bands-depth/03.png": band_bytes(np.zeros((6, 8, 3), np.uint8)),
        "bands-depth/04.tif": band_bytes(depth(4), "TIFF"),
        "bands-depth/05.png": band_bytes(depth(5).astype(np.uint8)),
        "bands-height/lost.tif": band_bytes(height(0), "TIFF"),
        "train.txt": "00\n01\n02\n03\n04\n05\nlost\n",
        "val.txt": "06\n07\n",
    }
    info, findings = ingested(tmp_path, files)
    found = {finding.key: (finding.kind, finding.text) for finding in findings}
    assert found == {
        "00": ("missing_band", "no band depth for images/00.png"),
        "01": (
            "band_size_mismatch",
            "band depth is 8 x 6 (height x width), its image 6 x 8 (bands-depth/01.png)",
        ),
        "02": ("unreadable_band", found["02"][1]),
        "03": ("unreadable_band", found["03"][1]),
        "04": ("ambiguous_name", "04 is the name of bands-depth/04.png and bands-depth/04.tif"),
        "05": (
            "mixed_band",
            (
                "band depth holds uint8, and bands-depth/06.png uint16; save all files of a "
                "band alike (bands-depth/05.png)"
            ),
        ),
        "lost": ("band_without_image", "no image for bands-height/lost.tif"),
        "": found[""],
    }
    assert "no decoder knows this format" in found["02"][1]
    assert "the image is RGB; expected a gray one" in found["03"][1]
    assert found[""][0] == "empty_split"
    assert info.splits["val"].rows == 2


def test_bands_follow_the_splits_of_folders(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for path, data in banded(4).items():
        folder, _, name = path.rpartition("/")
        split = "train" if name < "02" else "val"
        files[f"{folder}/{split}/{name}" if folder else path] = data
    info, findings = ingested(tmp_path, files)
    assert findings == []
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 2, "val": 2}


def test_a_folder_that_no_band_can_be_named_after_is_refused(tmp_path: Path) -> None:
    url = write_files(str(tmp_path), folders(2) | {"bands-near-ir/00.png": b""})
    with pytest.raises(DatasetError, match="bands-near-ir: 'near-ir' is no name of a band"):
        find_samples(url)
