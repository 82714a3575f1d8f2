"""The audit finds what is wrong, says where and how much, and stages the rest."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import fsspec.config
import numpy as np
import pytest

from fcn.images import decode_image
from fcn.masks import decode_mask
from tasks.audit import audit, examine, find_values, in_order, require_no_errors
from tasks.class_files import derive_classes, find_classes, find_further_classes
from tasks.dataset import DatasetError, Finding, open_split
from tasks.layouts import find_samples
from tasks.pairing import Pair
from tasks.staging import Staging
from tasks.stores import StoreUnavailable
from tests.tasks.sources import folders, image_bytes, label, mask_bytes, write_files


def audited(url: str, files: Mapping[str, bytes | str], **settings: int) -> list[Finding]:
    source = find_samples(write_files(url, files))
    table = find_classes(source)
    assert table is not None
    with Staging(table.classes) as staging:
        findings = audit(source, table, staging, **settings)
        errors = {finding.key for finding in findings if finding.severity == "error"}
        paired = {pair.key for pair in source.pairs}
        assert staging.num_rows == len(paired - errors)
    return findings


def test_a_good_source_has_no_findings(tmp_path: Path) -> None:
    assert audited(str(tmp_path), folders()) == []


def test_values_outside_the_classes_are_counted(tmp_path: Path) -> None:
    values = label((40, 50))
    values[0, :] = 37
    values[1, :2] = 4
    files = folders() | {
        "images/03.png": image_bytes(3, (40, 50)),
        "masks/03.png": mask_bytes(values),
    }
    (finding,) = audited(str(tmp_path), files)
    assert finding.kind == "unknown_class"
    assert finding.count == 52
    assert finding.key == "03"
    assert finding.text == (
        "label holds class 37 in 50 pixels, class 4 in 2 pixels; classes are 0..2 (masks/03.png)"
    )


def test_colours_of_no_class_are_counted(tmp_path: Path) -> None:
    palette = np.array([[10, 0, 0], [20, 0, 0]], np.uint8)
    colours = palette[label(num_classes=2)]
    good = mask_bytes(colours)
    colours[0, :3] = (1, 2, 255)
    files = {"classes.csv": "name,r,g,b\na,10,0,0\nb,20,0,0\n"}
    files |= {f"images/{i}.png": image_bytes(i) for i in range(3)}
    files |= {"masks/0.png": good, "masks/1.png": good, "masks/2.png": mask_bytes(colours)}
    (finding,) = audited(str(tmp_path), files)
    assert finding.text == (
        "label holds colour #0102ff in 3 pixels, which no class has (masks/2.png)"
    )


def test_masks_of_another_size_are_found(tmp_path: Path) -> None:
    files = folders() | {"masks/05.png": mask_bytes(label((8, 8)))}
    (finding,) = audited(str(tmp_path), files)
    assert finding.kind == "size_mismatch"
    assert finding.text == "mask is 8 x 8 (height x width), its image 6 x 8 (masks/05.png)"


def test_masks_fit_the_image_after_its_orientation(tmp_path: Path) -> None:
    turned = image_bytes(5, (6, 8), orientation=6)
    files = folders() | {"images/05.png": turned, "masks/05.png": mask_bytes(label((8, 6)))}
    assert audited(str(tmp_path), files) == []
    (finding,) = audited(str(tmp_path), files | {"masks/05.png": mask_bytes(label((6, 8)))})
    assert finding.kind == "size_mismatch"
    assert "once its EXIF orientation is applied; turn the mask as well" in finding.text


def test_unreadable_files_are_found(tmp_path: Path) -> None:
    good = folders()
    files = good | {
        "images/01.png": b"",
        "images/02.png": b"no image",
        "masks/03.png": good["masks/03.png"][:60],
        "images/04.png": image_bytes(4, (100, 100)),
        "masks/04.png": mask_bytes(label((100, 100))),
    }
    findings = audited(str(tmp_path), files, max_pixels=5000)
    assert sorted((f.file, f.kind) for f in findings) == [
        ("images/01.png", "unreadable_image"),
        ("images/02.png", "unreadable_image"),
        ("images/04.png", "unreadable_image"),
        ("masks/03.png", "unreadable_mask"),
        ("masks/04.png", "unreadable_mask"),
    ]
    assert all(finding.file in finding.text for finding in findings)


def test_images_and_masks_without_the_other_are_found(tmp_path: Path) -> None:
    files = folders()
    del files["masks/01.png"], files["images/02.png"]
    findings = audited(str(tmp_path), files)
    assert [(f.kind, f.text) for f in findings] == [
        ("image_without_mask", "no mask for images/01.png"),
        ("mask_without_image", "no image for masks/02.png"),
    ]


def test_of_an_image_in_two_splits_the_held_out_one_stays(tmp_path: Path) -> None:
    image, mask = image_bytes(1), mask_bytes(label())
    files = {"classes.txt": "a\nb\nc\n"}
    for split in ("train", "val", "test"):
        files |= {f"images/{split}/same.png": image, f"masks/{split}/same.png": mask}
    files |= {"images/train/other.png": image_bytes(2), "masks/train/other.png": mask}
    files |= {"images/train/other2.png": image_bytes(2), "masks/train/other2.png": mask}
    files |= {"images/val/third.png": image_bytes(3), "masks/val/third.png": mask}
    findings = audited(str(tmp_path), files)
    assert [(f.kind, f.split, f.text) for f in findings] == [
        (
            "duplicate_across_splits",
            split,
            f"same image as images/test/same.png of split test (images/{split}/same.png)",
        )
        for split in ("val", "train")
    ]


def test_the_same_pixels_in_another_file_format_are_a_duplicate(tmp_path: Path) -> None:
    upright = decode_image(image_bytes(1, orientation=3)).pixels
    files = {
        "classes.txt": "a\nb\nc\n",
        "images/train/a.png": image_bytes(1, orientation=3),
        "masks/train/a.png": mask_bytes(label()),
        "images/val/b.png": mask_bytes(upright),
        "masks/val/b.png": mask_bytes(label()),
        "images/train/other.png": image_bytes(2),
        "masks/train/other.png": mask_bytes(label()),
    }
    (finding,) = audited(str(tmp_path), files)
    assert finding.text == "same image as images/val/b.png of split val (images/train/a.png)"


def test_classes_that_never_occur_are_warnings(tmp_path: Path) -> None:
    files = folders() | {"classes.txt": "sky\nroad\ntree\ncow\n"}
    (finding,) = audited(str(tmp_path), files)
    assert (finding.kind, finding.severity) == ("absent_class", "warning")
    assert finding.text == "class 3 (cow) occurs in no label"


def test_rows_hold_the_image_as_it_was_and_the_label_with_its_palette(tmp_path: Path) -> None:
    files = folders() | {
        "images/05.png": image_bytes(5, (6, 8), orientation=6),
        "masks/05.png": mask_bytes(label((8, 6)), palette=False),
    }
    source = find_samples(write_files(str(tmp_path / "source"), files), val_fraction=0)
    table = find_classes(source)
    with Staging(table.classes) as staging:
        audit(source, table, staging)
        info, _ = staging.publish(str(tmp_path / "out"), source=source.url)
    samples = open_split(info, "train", tmp_path / "cache")
    sample = samples[5]
    assert sample.key == "05"
    assert sample.image == files["images/05.png"]
    np.testing.assert_array_equal(decode_mask(sample.label), label((8, 6)))
    assert decode_image(sample.image).pixels.shape == (8, 6, 3)
    assert info.splits["train"].class_pixels == (160, 160, 160)


def test_files_that_cannot_be_read_are_found(tmp_path: Path) -> None:
    source = find_samples(write_files(str(tmp_path), folders()))
    (tmp_path / "images/00.png").unlink()
    (tmp_path / "masks/01.png").unlink()
    (tmp_path / "masks/01.png").mkdir()
    table = find_classes(source)
    found = [examine(table, 10**6, pair).findings for pair in source.pairs[:3]]
    texts = [[(finding.kind, finding.text) for finding in findings] for findings in found]
    place = f"cannot read {tmp_path}"
    assert sorted(texts) == [
        [],
        [("unreadable_image", f"{place}/images/00.png: nothing there (images/00.png)")],
        [("unreadable_mask", f"{place}/masks/01.png: is a directory (masks/01.png)")],
    ]
    assert find_values(source) == {0, 1, 2}


def test_a_store_that_is_out_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(
        split="train",
        key="a",
        image_path="a.jpg",
        image_url="s3://bucket/a.jpg",
        mask_path="a.png",
        mask_url="s3://bucket/a.png",
    )
    settings = {
        "key": "a",
        "secret": "b",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    with pytest.raises(
        StoreUnavailable, match=r"cannot read s3://bucket/a\.jpg: 127\.0\.0\.1:9 cannot be reached"
    ):
        examine(derive_classes([0, 1]), 10**6, pair)


def test_a_split_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    files = {"classes.txt": "a\nb\nc\n"}
    for index, split in enumerate(["train", "train", "val"]):
        files[f"images/{split}/{index}.png"] = image_bytes(index)
        files[f"masks/{split}/{index}.png"] = mask_bytes(label())
    files |= {"images/train/0.png": b"no image", "masks/train/1.png": b"no mask"}
    source = find_samples(write_files(str(tmp_path / "source"), files))
    table = find_classes(source)
    with Staging(table.classes) as staging:
        findings = audit(source, table, staging)
        info, _ = staging.publish(str(tmp_path / "set"), source="here", audit=findings)

    [empty] = [finding for finding in findings if finding.kind == "empty_split"]
    assert (empty.severity, empty.split, empty.count) == ("error", "train", 2)
    with pytest.raises(
        DatasetError,
        match=r"no split 'train'.*it has val; no sample of split train is left: all 2 have errors",
    ):
        open_split(info, "train", tmp_path / "cache")


def test_values_of_masks_without_names(tmp_path: Path) -> None:
    files = folders() | {"masks/00.png": b"broken"}
    del files["classes.txt"]
    source = find_samples(write_files(str(tmp_path), files))
    assert find_classes(source) is None
    assert find_values(source) == {0, 1, 2}
    assert len(derive_classes(find_values(source)).classes) == 3
    write_files(str(tmp_path), {"masks/00.png": image_bytes(1)})
    with pytest.raises(DatasetError, match=r"masks/00\.png holds colours.*a colour for each class"):
        find_values(source)


def test_errors_are_summed_up() -> None:
    findings = [Finding(kind="a", severity="error", text=f"text {i}") for i in range(4)]
    findings.append(Finding(kind="b", severity="error", text="text b"))
    with pytest.raises(DatasetError) as error:
        require_no_errors(findings, "s3://b/x")
    message = str(error.value)
    assert message.startswith("5 errors in s3://b/x, so nothing was published: 4 a, 1 b; first: ")
    assert "text 2" in message
    assert "text 3" not in message
    assert "strict=False" in message


def test_warnings_are_no_errors() -> None:
    require_no_errors([Finding(kind="a", severity="warning", text="t")], "u")


def test_work_ahead_is_bounded_and_in_order() -> None:
    started = []
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            started.append(item)
        time.sleep(0.001 * (item % 3))
        return item

    results = in_order(work, iter(range(50)), num_threads=2)
    taken = [next(results) for _ in range(5)]
    assert len(started) <= 5 + 2 * 2
    assert taken + list(results) == list(range(50))


@pytest.mark.parametrize("threads", [1, 8])
def test_findings_do_not_depend_on_threads(tmp_path: Path, threads: int) -> None:
    files = folders(20) | {f"masks/{i:02d}.png": mask_bytes(label((3, 3))) for i in (3, 7, 11)}
    keys = [finding.key for finding in audited(str(tmp_path), files, num_threads=threads)]
    assert sorted(keys) == ["03", "07", "11"]


def test_masks_of_further_heads_are_audited_by_their_own_classes(tmp_path: Path) -> None:
    files = folders(4) | {
        "masks-geo/00.png": mask_bytes(label(num_classes=2)),
        "masks-geo/01.png": mask_bytes(label()),  # class 2 is unknown here
        "masks-geo/02.png": mask_bytes(label((5, 8), num_classes=2)),
        "masks-geo/03.png": b"no image",
        "classes-geo.txt": "flat\nsteep\n",
    }
    source = find_samples(write_files(str(tmp_path), files), val_fraction=0)
    table, further = find_classes(source), find_further_classes(source)["geo"]
    assert table is not None
    assert further is not None
    with Staging(table.classes, further_classes={"geo": further.classes}) as staging:
        findings = audit(source, replace(table, further={"geo": further}), staging)
        assert staging.num_rows == 1
    assert {finding.key: (finding.kind, finding.file) for finding in findings} == {
        "01": ("unknown_class", "masks-geo/01.png"),
        "02": ("size_mismatch", "masks-geo/02.png"),
        "03": ("unreadable_mask", "masks-geo/03.png"),
    }


def test_values_of_a_further_head_may_tell_its_classes(tmp_path: Path) -> None:
    files = folders(3) | {"masks-geo/01.png": mask_bytes(label(num_classes=2))}
    source = find_samples(write_files(str(tmp_path), files))
    assert find_further_classes(source) == {"geo": None}
    assert find_values(source, head="geo") == {0, 1}
