"""Datasets as written by an ingest are read back whole, from any store, in any process."""

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

from fcn.classes import Classes
from tasks import stores
from tasks.dataset import DatasetError, Finding, Sample, open_split, read_info
from tasks.split_writer import Row
from tasks.staging import Staging
from tasks.stores import StoreError

CLASSES = Classes.named(["sky", "road"])


def row(index: int, size: int = 10) -> Row:
    return Row(
        key=f"train/{index:03d}",
        image=bytes([index % 256]) * size,
        image_path=f"train/{index:03d}.jpg",
        label=b"label %d" % index,
        height=2,
        width=3,
        pixels=np.array([4, 1, 1]),
    )


def publish(url: str, num_rows: int = 150) -> None:
    findings = [
        Finding(kind=kind, severity="error", text="t", file="a.png", key="a", split="train")
        for kind in ("unknown_class", "size_mismatch")
    ]
    with Staging(CLASSES, max_file_bytes=1000) as staging:
        for index in range(num_rows):
            staging.add("train", row(index))
        staging.add("val", row(999))
        staging.publish(url, source="s3://b/x", audit=findings, settings={"seed": 1})


@pytest.fixture
def dataset_url(tmp_path: Path) -> str:
    url = str(tmp_path / "dataset")
    publish(url)
    return url


def test_info_says_what_was_published(dataset_url: str) -> None:
    info = read_info(dataset_url)
    assert info.classes == CLASSES
    assert list(info.splits) == ["train", "val"]
    train = info.splits["train"]
    assert (train.rows, train.left_out) == (150, 1)  # one sample, two reasons
    assert (train.class_pixels, train.ignored_pixels) == ((600, 150), 150)
    assert train.files[0] == f"data/train-00000-of-{len(train.files):05d}.parquet"
    assert len(train.files) > 1
    assert info.source == "s3://b/x"
    assert info.audit[0].kind == "unknown_class"
    assert info.settings == {"seed": 1}


def test_samples_are_read_in_random_access(dataset_url: str, tmp_path: Path) -> None:
    samples = open_split(read_info(dataset_url), "train", tmp_path / "cache")
    assert len(samples) == 150
    assert samples[149] == samples[-1] == Sample("train/149", bytes([149]) * 10, b"label 149")
    assert [sample.key for sample in samples] == samples.keys
    with pytest.raises(IndexError, match="sample 150 of 150"):
        samples[150]


def test_opening_again_uses_the_copy(dataset_url: str, tmp_path: Path) -> None:
    info = read_info(dataset_url)
    open_split(info, "train", tmp_path / "cache")
    for name in info.splits["train"].files:
        stores.remove(stores.join(dataset_url, name))
    assert len(open_split(info, "train", tmp_path / "cache")) == 150
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_samples_cross_to_spawned_processes(dataset_url: str, tmp_path: Path) -> None:
    samples = open_split(read_info(dataset_url), "train", tmp_path / "cache")
    assert samples[7].label == b"label 7"  # the parent's map is in use
    assert len(pickle.dumps(samples)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(samples.__getitem__, [3]) == [samples[3]]


def test_samples_come_from_s3(s3, tmp_path: Path) -> None:
    url = s3.new_bucket() + "/set"
    publish(url)
    samples = open_split(read_info(url), "val", tmp_path / "cache")
    assert [sample.key for sample in samples] == ["train/999"]


def test_no_dataset_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds no dataset\.json.*run ingest first"):
        read_info(str(tmp_path))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format_version": 1}'])
def test_damaged_info_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match="is damaged"):
        read_info(str(tmp_path))


def test_another_format_version_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(DatasetError, match="format version 99; this program reads version 1"):
        read_info(str(tmp_path))


def test_unknown_split_names_those_there_are(dataset_url: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no split .test.*it has train, val"):
        open_split(read_info(dataset_url), "test", tmp_path)


def test_files_that_cannot_be_opened_are_a_store_error(dataset_url: str, tmp_path: Path) -> None:
    info = read_info(dataset_url)
    file = Path(dataset_url, info.splits["val"].files[0])
    file.unlink()
    file.mkdir()
    with pytest.raises(StoreError, match=rf"cannot read .*{file.name}: is a directory"):
        open_split(info, "val", tmp_path / "cache")


def test_missing_and_cut_files_are_errors_that_leave_no_copy(
    dataset_url: str, tmp_path: Path
) -> None:
    info, cache = read_info(dataset_url), tmp_path / "cache"
    last = Path(dataset_url, info.splits["train"].files[-1])
    last.write_bytes(last.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=f"{last.name} of .* cannot be read"):
        open_split(info, "train", cache)
    last.unlink()
    with pytest.raises(DatasetError, match=f"{last.name} of .* cannot be read"):
        open_split(info, "train", cache)
    assert list(cache.iterdir()) == []
