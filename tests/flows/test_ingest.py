"""The flow makes a dataset of a source, or says why not and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from fcn.masks import decode_mask
from flows.ingest import ingest
from tasks.dataset import DatasetError, DatasetInfo, open_split, read_info
from tasks.ingest import IngestConfig
from tasks.stores import StoreError
from tests.tasks.sources import folders, label, mask_bytes, write_files

pytestmark = pytest.mark.usefixtures("prefect_server")


def bad_folders() -> dict[str, bytes | str]:
    """Ten samples: a class too many, a mask too small, an image without a mask."""
    values = label()
    values[0, :4] = 37
    files = folders() | {
        "masks/01.png": mask_bytes(values),
        "masks/02.png": mask_bytes(label((3, 3))),
    }
    del files["masks/03.png"]
    return files


def test_a_local_source_becomes_a_dataset(tmp_path: Path) -> None:
    source = write_files(str(tmp_path / "source"), folders())
    info = ingest(source, str(tmp_path / "set"))
    assert read_info(str(tmp_path / "set")) == info
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 8, "val": 2}
    assert info.classes.names == ("sky", "road", "tree")
    assert info.settings["layout"] == "folders"
    assert info.settings["strict"] is True
    sample = open_split(info, "val", tmp_path / "cache")[0]
    np.testing.assert_array_equal(decode_mask(sample.label), label())


def test_s3_in_and_out(s3, tmp_path: Path) -> None:
    bucket = s3.new_bucket()
    write_files(f"{bucket}/source", folders())
    info = ingest(f"{bucket}/source", f"{bucket}/set")
    local = ingest(write_files(str(tmp_path / "source"), folders()), str(tmp_path / "set"))
    assert info.digest == local.digest
    assert info.source == f"{bucket}/source"
    assert len(open_split(read_info(f"{bucket}/set"), "train", tmp_path / "cache")) == 8


def test_a_source_with_errors_publishes_nothing(tmp_path: Path) -> None:
    source = write_files(str(tmp_path / "source"), bad_folders())
    with pytest.raises(DatasetError) as error:
        ingest(source, str(tmp_path / "set"))
    message = str(error.value)
    for part in (
        f"3 errors in {source}, so nothing was published",
        "label holds class 37 in 4 pixels; classes are 0..2 (masks/01.png)",
        "no mask for images/03.png",
        "set strict=False",
    ):
        assert part in message
    assert not (tmp_path / "set").exists()


def test_a_refused_ingest_leaves_the_dataset_that_was_there(tmp_path: Path) -> None:
    url = str(tmp_path / "set")
    good = ingest(write_files(str(tmp_path / "good"), folders()), url)
    bad = write_files(str(tmp_path / "bad"), bad_folders())
    with pytest.raises(DatasetError, match="nothing was published"):
        ingest(bad, url, config=IngestConfig(overwrite=True))
    assert read_info(url) == good


def test_without_strict_bad_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    source = write_files(str(tmp_path / "source"), bad_folders())
    info = ingest(source, str(tmp_path / "set"), config=IngestConfig(strict=False))
    assert sum(split.rows for split in info.splits.values()) == 7
    assert sum(split.left_out for split in info.splits.values()) == 2
    assert sorted(finding.kind for finding in read_info(info.url).audit) == [
        "image_without_mask",
        "size_mismatch",
        "unknown_class",
    ]
    keys = open_split(info, "train", tmp_path).keys + open_split(info, "val", tmp_path).keys
    assert not {"01", "02", "03"} & set(keys)


def test_classes_are_derived_where_nothing_names_them(tmp_path: Path) -> None:
    files = folders()
    del files["classes.txt"]
    info = ingest(write_files(str(tmp_path / "source"), files), str(tmp_path / "set"))
    assert info.classes.names == ("class 0", "class 1", "class 2")


def test_coloured_masks_with_a_colour_table(tmp_path: Path) -> None:
    colours = np.array([[9, 9, 9], [200, 0, 0], [0, 0, 0]], np.uint8)
    files = folders() | {f"masks/{i:02d}.png": mask_bytes(colours[label()]) for i in range(10)}
    source = write_files(str(tmp_path / "source"), files)
    table = write_files(
        str(tmp_path), {"table.csv": "name,r,g,b\nsky,9,9,9\nvoid,0,0,0\nroad,200,0,0\n"}
    )
    info = ingest(source, str(tmp_path / "set"), classes=f"{table}/table.csv")
    assert info.classes.names == ("sky", "road")
    assert info.classes.palette == ((9, 9, 9), (200, 0, 0))
    expected = np.array([0, 1, 255], np.uint8)[label()]
    for sample in open_split(info, "train", tmp_path / "cache"):
        np.testing.assert_array_equal(decode_mask(sample.label), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: ingest(f"{p}/absent", f"{p}/set"), StoreError, "nothing there"),
        (lambda p: ingest(str(p), f"{p}/file/set"), StoreError, "cannot write"),
        (lambda p: ingest(str(p), f"{p}/set"), DatasetError, "no layout fits"),
        (lambda p: ingest(str(p), f"{p}/set", layout="coco"), Exception, "layout"),
        (lambda p: ingest(str(p), f"{p}/set", config={"strikt": 1}), Exception, "strikt"),
    ],
    ids=["absent source", "unwritable dataset", "no layout", "unknown layout", "unknown option"],
)
def test_bad_input_is_refused(
    tmp_path: Path, call: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert not (tmp_path / "set/dataset.json").exists()


def test_runs_are_named_by_their_urls_and_show_artifacts(
    tmp_path: Path,
) -> None:
    source = write_files(str(tmp_path / "source"), bad_folders())
    state = ingest(
        source, str(tmp_path / "set"), config=IngestConfig(strict=False), return_state=True
    )
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    assert run.name == f"{source} -> {tmp_path / 'set'}"
    by_key = {artifact.key: artifact for artifact in artifacts}
    assert by_key.keys() == {
        "ingest-progress",
        "ingest-audit",
        "ingest-findings",
        "ingest-dataset",
    }
    assert "unknown\\_class" in by_key["ingest-audit"].data
    assert "masks/02.png" in str(by_key["ingest-findings"].data)


def test_credentials_in_a_url_are_not_in_the_name_of_the_run(tmp_path: Path) -> None:
    state = ingest(
        "http://user:secret@127.0.0.1:9/x?token=secret", str(tmp_path), return_state=True
    )
    assert state.is_failed()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name == f"http://127.0.0.1:9/x -> {tmp_path}"


def test_real_camvid_by_s3(s3, camvid_dir: Path) -> None:
    url = s3.new_bucket() + "/camvid"
    info = ingest(str(camvid_dir), url)
    assert rows(read_info(url)) == {"train": 367, "val": 101}
    assert info.classes.names[8] == "Car"
    assert info.audit == []
    assert sum(info.splits["train"].class_pixels) + info.splits["train"].ignored_pixels == (
        367 * 360 * 480
    )


def test_real_coco(coco_dir: Path, tmp_path: Path) -> None:
    info = ingest(str(coco_dir), str(tmp_path / "set"))
    assert rows(info) == {"train": 102, "val": 26}
    assert [(finding.kind, finding.severity, finding.text) for finding in info.audit] == [
        ("absent_class", "warning", "class 10 (cow) occurs in no label"),
        ("absent_class", "warning", "class 17 (sheep) occurs in no label"),
    ]


def rows(info: DatasetInfo) -> dict[str, int]:
    return {name: split.rows for name, split in info.splits.items()}
