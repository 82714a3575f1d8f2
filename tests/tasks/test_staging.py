"""Datasets are published whole, once, and never over another one unasked."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from fcn.classes import Classes
from fcn.masks import encode_mask
from tasks.dataset import BATCH_ROWS, DatasetError, DatasetInfo, open_split, read_info
from tasks.split_writer import FurtherLabel, Row
from tasks.staging import Staging, require_free
from tasks.stores import StoreError
from tests.faulty_store import faulty
from tests.tasks.sources import image_bytes, label, write_files

CLASSES = Classes.named(["sky", "road", "tree"])


def row(index: int) -> Row:
    return Row(
        key=f"s/{index:03d}",
        image=image_bytes(index),
        image_path=f"images/s/{index:03d}.png",
        label=encode_mask(label(), CLASSES.palette),
        height=6,
        width=8,
        pixels=np.array([16, 16, 16, 0]),
    )


def publish(
    url: str,
    num_train: int = 5,
    *,
    overwrite: bool = False,
    max_file_bytes: int = 1 << 20,
    classes: Classes = CLASSES,
) -> tuple[DatasetInfo, bool]:
    with Staging(classes, max_file_bytes=max_file_bytes) as staging:
        for index in range(num_train):
            staging.add("train", row(index))
        staging.add("val", row(1000))
        return staging.publish(url, source="here", overwrite=overwrite)


def test_files_are_bounded_by_bytes_and_named_by_their_number(tmp_path: Path) -> None:
    size = len(row(0).image) + len(row(0).label)
    info, is_new = publish(str(tmp_path), 25, max_file_bytes=10 * size)
    assert is_new
    assert info.splits["train"].files == tuple(
        f"data/train-{index:05d}-of-00003.parquet" for index in range(3)
    )
    rows = [pq.read_metadata(tmp_path / name).num_rows for name in info.splits["train"].files]
    assert sum(rows) == 25
    assert max(rows) <= 11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "dataset.json"]


def test_row_groups_are_small(tmp_path: Path) -> None:
    info, _ = publish(str(tmp_path), 150)
    metadata = pq.read_metadata(tmp_path / info.splits["train"].files[0])
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert sizes == [BATCH_ROWS, BATCH_ROWS, 150 - 2 * BATCH_ROWS]


def test_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first, _ = publish(str(tmp_path / "a"), 25)
    cut, _ = publish(str(tmp_path / "b"), 25, max_file_bytes=2000)
    other, _ = publish(str(tmp_path / "c"), 24)
    renamed, _ = publish(str(tmp_path / "d"), 25, classes=Classes.named(["x", "road", "tree"]))
    assert len(cut.splits["train"].files) > 1
    assert first.digest == cut.digest
    assert len({first.digest, other.digest, renamed.digest}) == 3


def test_the_same_content_again_writes_nothing(tmp_path: Path) -> None:
    publish(str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    _, is_new = publish(str(tmp_path), max_file_bytes=500)
    assert not is_new
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_content_is_refused_unless_asked_for(tmp_path: Path) -> None:
    first, _ = publish(str(tmp_path), 5, max_file_bytes=500)
    with pytest.raises(DatasetError, match=r"holds another dataset.*overwrite=True"):
        publish(str(tmp_path), 6)
    assert read_info(str(tmp_path)) == first
    second, _ = publish(str(tmp_path), 6, overwrite=True)
    assert read_info(str(tmp_path)) == second
    names = [name for split in second.splits.values() for name in split.files]
    assert sorted(f"data/{path.name}" for path in (tmp_path / "data").iterdir()) == sorted(names)


def test_an_interrupted_ingest_is_cleared_away(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_files(url, {".incomplete": "", "data/train-00000-of-00009.parquet": "half"})
    with pytest.raises(DatasetError, match=r"holds no dataset\.json"):
        read_info(url)
    require_free(url, overwrite=False)
    info, _ = publish(url)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "train-00000-of-00001.parquet",
        "val-00000-of-00001.parquet",
    ]
    assert len(open_split(info, "train", tmp_path / "cache")) == 5
    assert not (tmp_path / ".incomplete").exists()


def test_an_overwrite_that_breaks_off_leaves_no_dataset_and_can_be_repeated(
    tmp_path: Path,
) -> None:
    url = str(tmp_path)
    publish(url, 5, max_file_bytes=500)
    obstacle = tmp_path / "data/val-00000-of-00001.parquet/file"
    for path in (tmp_path / "data").glob("val-*"):
        path.unlink()
    write_files(url, {str(obstacle.relative_to(tmp_path)): ""})
    with pytest.raises(DatasetError, match="another ingest is writing"):
        publish(url, 3, overwrite=True)
    with pytest.raises(DatasetError, match=r"holds no dataset\.json"):
        read_info(url)
    obstacle.unlink()
    obstacle.parent.rmdir()
    info, is_new = publish(url, 3)
    assert is_new
    assert read_info(url) == info


def test_files_of_others_are_not_touched_unasked(tmp_path: Path) -> None:
    url = str(tmp_path)
    write_files(url, {"data/train-00000-of-00001.parquet": "mine", "data/notes.txt": "mine"})
    with pytest.raises(DatasetError, match=r"1 Parquet files but no dataset\.json.*overwrite=True"):
        require_free(url, overwrite=False)
    require_free(url, overwrite=True)
    publish(url, overwrite=True)
    assert (tmp_path / "data/notes.txt").read_text() == "mine"


def test_a_damaged_dataset_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    write_files(str(tmp_path), {"dataset.json": "{"})
    with pytest.raises(DatasetError, match="is damaged"):
        publish(str(tmp_path))
    publish(str(tmp_path), overwrite=True)
    assert read_info(str(tmp_path)).splits["train"].rows == 5


def test_an_unwritable_url_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        require_free(str(tmp_path / "file" / "dataset"), overwrite=False)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(StoreError, match=r"s3://b/set was given with a user name") as caught:
        require_free("s3://user:hush@b/set", overwrite=True)
    assert "hush" not in str(caught.value)


def test_nothing_to_publish_is_an_error(tmp_path: Path) -> None:
    with Staging(CLASSES) as staging, pytest.raises(DatasetError, match="no sample is left"):
        staging.publish(str(tmp_path), source="here")
    assert list(tmp_path.iterdir()) == []


def test_s3_is_written_and_overwritten_alike(s3) -> None:
    url = s3.new_bucket() + "/sets/a"
    require_free(url, overwrite=False)
    first, _ = publish(url, 5, max_file_bytes=500)
    with pytest.raises(DatasetError, match="holds another dataset"):
        publish(url, 4)
    second, _ = publish(url, 4, overwrite=True)
    assert read_info(url) == second
    assert first.digest != second.digest
    assert publish(url, 4) == (second, False)


def test_hugging_face_shows_images_in_their_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    publish(str(tmp_path / "set"), 3)
    loaded = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 3, "val": 1}
    sample = loaded["train"][2]
    assert isinstance(loaded["train"].features["image"], datasets.Image)
    assert sample["image"].mode == "RGB"
    assert (sample["key"], sample["height"], sample["width"]) == ("s/002", 6, 8)
    np.testing.assert_array_equal(np.asarray(sample["label"]), label())


def test_hugging_face_turns_images_as_their_labels_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    turned = datasets.Image().decode_example(
        {"bytes": image_bytes(1, (6, 8), orientation=6), "path": None}
    )
    assert turned.size == (6, 8)  # width x height: upright


def test_duckdb_and_pandas_read_the_rows(tmp_path: Path) -> None:
    publish(str(tmp_path), 7, max_file_bytes=500)
    query = f"select count(*), count(distinct key) from '{tmp_path}/data/train-*.parquet'"
    assert duckdb.sql(query).fetchall() == [(7, 7)]
    frame = pd.read_parquet(next((tmp_path / "data").glob("val-*.parquet")))
    assert list(frame.columns) == ["key", "image", "label", "height", "width"]
    assert frame.image[0]["bytes"] == row(1000).image
    assert frame.image[0]["path"] == "images/s/1000.png"


def test_info_is_plain_json(tmp_path: Path) -> None:
    publish(str(tmp_path))
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert content["classes"][1] == {"id": 1, "name": "road", "colour": [128, 0, 0]}
    assert content["ignore_index"] == 255
    assert content["splits"]["train"]["class_pixels"] == [80, 80, 80]


def test_files_whose_answers_were_lost_are_no_other_ingest(s3: Any) -> None:
    place = s3.new_bucket()
    with faulty(s3.endpoint) as proxy, Staging(CLASSES) as staging:
        proxy.planned = [("PUT", name, "lost answer") for name in ("train-00000", "dataset.json")]
        staging.add("train", row(0))
        staging.publish(place, source="source")
        assert proxy.planned == []
    assert read_info(place).splits["train"].rows == 1


def two_heads(url: str, further: bytes | None, names: Sequence[str] = ("x", "y")) -> DatasetInfo:
    """A dataset of one row, which has two labels."""
    geo = FurtherLabel(label=further, pixels=np.array([1, 2, 3]))
    with Staging(CLASSES, further_classes={"geo": Classes.named(names)}) as staging:
        staging.add("train", replace(row(0), further={"geo": geo}))
        info, _ = staging.publish(url, source="s")
    return info


def test_labels_of_further_heads_are_columns_that_count(tmp_path: Path) -> None:
    urls = [str(tmp_path / name) for name in "abcd"]
    infos = [
        two_heads(urls[0], b"one"),
        two_heads(urls[1], b"two"),
        two_heads(urls[2], None),
        two_heads(urls[3], b"one", ("x", "z")),
    ]
    assert len({info.digest for info in infos}) == 4
    assert read_info(urls[0]) == infos[0]
    assert infos[0].splits["train"].further_class_pixels == {"geo": (1, 2, 3)}
    for info, stored in zip(infos, (b"one", b"two", None, b"one"), strict=True):
        (sample,) = open_split(info, "train", tmp_path / "cache")
        assert sample.further_labels == {"geo": stored}


def test_a_dataset_of_one_head_says_nothing_of_others(tmp_path: Path) -> None:
    with Staging(CLASSES) as staging:
        staging.add("train", row(0))
        staging.publish(str(tmp_path), source="s")
    assert "further" not in (tmp_path / "dataset.json").read_text()
