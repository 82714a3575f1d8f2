"""Settings of an ingest, and the pages its runs show."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fcn.classes import Classes
from fcn.images import MAX_PIXELS
from tasks.dataset import DatasetError, DatasetInfo, Finding, Split
from tasks.ingest import IngestConfig, list_source
from tasks.ingest_pages import audit_page, dataset_page
from tasks.layouts import find_samples
from tests.tasks.sources import folders, mask_bytes, write_files
from tests.tasks.test_staging import CLASSES


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        IngestConfig(strikt=False)


@pytest.mark.parametrize(
    "setting",
    [
        {"val_fraction": 1},
        {"num_threads": 0},
        {"max_image_pixels": 0},
        {"max_image_pixels": MAX_PIXELS + 1},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="Input should be"):
        IngestConfig(**setting)


def test_every_setting_is_described_in_the_form() -> None:
    properties = IngestConfig.model_json_schema()["properties"]
    assert [name for name, field in properties.items() if not field.get("description")] == []


def test_audit_page_sums_up_by_kind(tmp_path: Path) -> None:
    source = find_samples(write_files(str(tmp_path), folders()))
    findings = [
        Finding(kind="absent_class", severity="warning", text="class 2 (tree) occurs in no label"),
        Finding(kind="size_mismatch", severity="error", text="mask is 8 x 8"),
        Finding(kind="size_mismatch", severity="error", text="mask is 9 x 9"),
    ]
    page = audit_page(source, findings, 8)
    assert "Layout folders: 10 pairs, 8 without error." in page
    assert "| error | size\\_mismatch | 2 | mask is 8 x 8 |" in page
    assert "9 x 9" not in page
    assert "No findings." in audit_page(source, [], 10)


def test_pages_hold_no_credentials() -> None:
    info = DatasetInfo(
        url="https://user:secret@host/set?token=secret",
        classes=CLASSES,
        splits={
            "train": Split(
                name="train",
                rows=1234,
                files=("data/train-00000-of-00001.parquet",),
                class_pixels=(50, 25, 0),
                ignored_pixels=25,
                left_out=3,
            )
        },
        source="s3://bucket/x",
        audit=[],
        digest="abc",
        settings={},
    )
    page = dataset_page(info)
    assert "secret" not in page
    assert "| train | 1,234 | 1 | 3 |" in page
    assert "| 1 | road | 25.00 % |" in page
    assert "| 255 | ignored | 25.00 % |" in page


def test_masks_that_do_not_tell_a_heads_classes_ask_for_its_file(tmp_path: Path) -> None:
    files = folders(2) | {"masks-geo/00.png": mask_bytes(np.full((6, 8), 7, np.uint8))}
    url = write_files(str(tmp_path / "in"), files)
    with pytest.raises(DatasetError, match=r"head geo: masks hold the values 7 .*classes-geo\.csv"):
        list_source.fn(url, str(tmp_path / "out"), "auto", None, IngestConfig())


def test_the_page_of_a_dataset_shows_every_head() -> None:
    split = Split(
        name="train", rows=1, files=("f",), class_pixels=(1, 1, 2), ignored_pixels=0,
        further_class_pixels={"geo": (3, 0, 1)},
    )  # fmt: skip
    info = DatasetInfo(
        url="u", classes=CLASSES, splits={"train": split}, source="s", audit=[], digest="d",
        settings={}, further_classes={"geo": Classes.named(["flat", "steep"])},
    )  # fmt: skip
    page = dataset_page(info)
    assert "| 0 | geo: flat | 75.00 % |" in page
    assert "| 255 | geo: ignored | 25.00 % |" in page
