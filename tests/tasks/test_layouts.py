"""Sources of every layout are listed, paired and split."""

from collections import Counter
from pathlib import Path

import pytest

from tasks.dataset import DatasetError
from tasks.layouts import Source, find_samples
from tasks.stores import StoreError
from tests.tasks.sources import write_files


def pairs(source: Source) -> list[tuple[str, str, str, str]]:
    return [(p.split, p.key, p.image_path, p.mask_path) for p in source.pairs]


def kinds(source: Source) -> dict[str, str]:
    return {finding.kind: finding.text for finding in source.findings}


@pytest.fixture
def make(tmp_path: Path):
    """Makes a source of empty files, some of them with text."""

    def make(*paths: str, **texts: str) -> str:
        return write_files(str(tmp_path), dict.fromkeys(paths, b"") | texts)

    return make


def test_voc_follows_its_lists(make) -> None:
    url = make(
        *("JPEGImages/2007_1.jpg", "JPEGImages/2007_2.jpg", "JPEGImages/no_mask.jpg"),
        *("SegmentationClass/2007_1.png", "SegmentationClass/2007_2.png"),
        *("Annotations/2007_1.xml", "SegmentationObject/2007_1.png"),
        **{
            "ImageSets/Segmentation/train.txt": "2007_2\n",
            "ImageSets/Segmentation/val.txt": "2007_1\n\n",
            "ImageSets/Segmentation/trainval.txt": "2007_1\n2007_2\n",
        },
    )
    source = find_samples(url)
    assert source.layout == "voc"
    assert pairs(source) == [
        ("train", "2007_2", "JPEGImages/2007_2.jpg", "SegmentationClass/2007_2.png"),
        ("val", "2007_1", "JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png"),
    ]
    assert source.findings == []


def test_voc_with_trainval_alone_is_split_by_seed(make) -> None:
    keys = [f"a{index}" for index in range(11)]
    url = make(
        *(f"JPEGImages/{key}.jpg" for key in keys),
        *(f"SegmentationClass/{key}.png" for key in keys),
        **{"ImageSets/Segmentation/trainval.txt": "\n".join(keys[:10])},
    )
    source = find_samples(url)
    assert Counter(pair.split for pair in source.pairs) == {"train": 8, "val": 2}
    assert kinds(source) == {
        "not_in_a_split": "1 images with masks are in no list of a split and are left out"
    }


def test_listed_keys_without_files_are_found(make) -> None:
    url = make(
        *("JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png"),
        "SegmentationClass/c.png",
        **{"ImageSets/Segmentation/train.txt": "a\nb\nc\nd\n"},
    )
    source = find_samples(url)
    assert [pair.key for pair in source.pairs] == ["a"]
    assert kinds(source) == {
        "image_without_mask": "no mask for JPEGImages/b.jpg",
        "mask_without_image": "no image for SegmentationClass/c.png",
        "missing_file": "d is listed in train but has neither image nor mask",
    }
    assert {(finding.key, finding.split) for finding in source.findings} == {
        ("b", "train"),
        ("c", "train"),
        ("d", "train"),
    }


def test_camvid_takes_the_splits_there_are(make) -> None:
    url = make("train/x.png", "trainannot/x.png", "val/x.jpg", "valannot/x.png")
    source = find_samples(url)
    assert source.layout == "camvid"
    assert pairs(source) == [
        ("train", "train/x", "train/x.png", "trainannot/x.png"),
        ("val", "val/x", "val/x.jpg", "valannot/x.png"),
    ]


def test_a_split_without_any_mask_is_a_warning(make) -> None:
    source = find_samples(make("train/x.png", "trainannot/x.png", "test/y.png", "test/z.png"))
    assert [pair.split for pair in source.pairs] == ["train"]
    (finding,) = source.findings
    assert (finding.kind, finding.severity, finding.count) == ("unlabelled_split", "warning", 2)


def test_folders_are_split_by_seed(make) -> None:
    keys = [f"{index:03d}" for index in range(100)]
    url = make(*(f"images/{key}.jpg" for key in keys), *(f"masks/{key}.png" for key in keys))
    first, same = find_samples(url), find_samples(url)
    other = find_samples(url, seed=1)
    assert Counter(pair.split for pair in first.pairs) == {"train": 80, "val": 20}
    assert first.pairs == same.pairs
    assert first.pairs != other.pairs
    assert Counter(p.split for p in find_samples(url, val_fraction=0).pairs) == {"train": 100}


def test_two_samples_are_split_in_two_and_one_is_for_training(make) -> None:
    url = make("images/a.jpg", "masks/a.png")
    assert [pair.split for pair in find_samples(url).pairs] == ["train"]
    make("images/b.jpg", "masks/b.png")
    splits = [pair.split for pair in find_samples(url, val_fraction=0.01).pairs]
    assert splits == ["train", "val"]


def test_folders_with_split_folders(make) -> None:
    url = make(
        *("images/training/a.jpg", "masks/training/a.png"),
        *("images/validation/s/b.jpg", "masks/validation/s/b.png"),
    )
    assert pairs(find_samples(url)) == [
        ("train", "training/a", "images/training/a.jpg", "masks/training/a.png"),
        ("val", "validation/s/b", "images/validation/s/b.jpg", "masks/validation/s/b.png"),
    ]


@pytest.mark.parametrize(
    "split_files",
    [
        {"train.txt": "a\n", "val.txt": "images/b.jpg masks/b.png\n", "test.txt": "./c d.jpg\n"},
        {"splits.csv": "split, image\ntrain, a.jpg\nvalidation, b\ntest, c d\n"},
        {"splits.json": '{"train": ["a"], "val": ["images/b.jpg"], "test": ["c d.jpg"]}'},
    ],
    ids=["lists", "csv", "json"],
)
def test_folders_with_a_split_file(make, split_files: dict[str, str]) -> None:
    keys = ["a", "b", "c d"]
    paths = [f"images/{key}.jpg" for key in keys] + [f"masks/{key}.png" for key in keys]
    source = find_samples(make(*paths, **split_files))
    assert [(pair.split, pair.key) for pair in source.pairs] == [
        ("test", "c d"),
        ("train", "a"),
        ("val", "b"),
    ]
    assert source.findings == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("splits.csv", "name,part\na,train\n", "columns name, part; expected key"),
        ("splits.csv", "key,split\na,holdout\n", "names the split 'holdout'; expected train"),
        ("splits.json", "[1]", "must hold"),
        ("splits.json", '{"a": ["train"]}', "names the split 'a'"),
    ],
)
def test_a_bad_split_file_is_an_error(make, name: str, content: str, message: str) -> None:
    url = make("images/a.jpg", "masks/a.png", **{name: content})
    with pytest.raises(DatasetError, match=message):
        find_samples(url)


@pytest.mark.parametrize("suffix", ["_mask", "_label", "_gt", "_L"])
def test_masks_may_have_a_suffix(make, suffix: str) -> None:
    source = find_samples(make("images/s/a.jpg", f"masks/s/a{suffix}.png"))
    assert [pair.key for pair in source.pairs] == ["s/a"]


def test_names_that_fit_twice_are_errors(make) -> None:
    source = find_samples(
        make(
            *("images/a.jpg", "images/a.png", "masks/a.png"),
            *("images/b.jpg", "masks/b.png", "masks/b_mask.png"),
        )
    )
    assert source.pairs == []
    assert [finding.text for finding in source.findings] == [
        "a is the name of images/a.jpg and images/a.png and masks/a.png",
        "b is the name of images/b.jpg and masks/b.png and masks/b_mask.png",
    ]


def test_other_files_are_passed_over(make) -> None:
    url = make("images/a.JPG", "masks/a.png", "images/Thumbs.db", "images/._a.jpg", "README.md")
    assert [pair.key for pair in find_samples(url).pairs] == ["a"]


def test_class_file_is_found(make) -> None:
    source = find_samples(make("images/a.jpg", "masks/a.png", "classes.txt"))
    assert source.class_file_url is not None
    assert source.class_file_url.endswith("/classes.txt")


def test_no_layout_says_what_is_there_and_what_was_expected(make) -> None:
    url = make("photos/a.jpg", "notes.txt")
    with pytest.raises(DatasetError) as error:
        find_samples(url)
    for part in ("no layout fits", "notes.txt, photos/", "images/ and masks/", "JPEGImages/"):
        assert part in str(error.value)


def test_a_layout_one_folder_down_is_pointed_out(make) -> None:
    url = make("VOC2012/JPEGImages/a.jpg", "VOC2012/SegmentationClass/a.png")
    with pytest.raises(DatasetError, match=r"VOC2012/ looks like layout voc: give .*/VOC2012"):
        find_samples(url)


def test_another_layout_than_asked_for_is_pointed_out(make) -> None:
    url = make("images/a.jpg", "masks/a.png")
    with pytest.raises(DatasetError, match=r"layout voc does not fit .* looks like layout folders"):
        find_samples(url, "voc")


def test_folders_without_images_are_an_error(make) -> None:
    with pytest.raises(DatasetError, match="but no image file in them"):
        find_samples(make("images/readme.txt", "masks/readme.txt"))


def test_a_url_that_does_not_exist_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing there"):
        find_samples(str(tmp_path / "absent"))


def test_sources_on_s3_are_the_same(s3) -> None:
    url = s3.new_bucket() + "/some/set"
    write_files(url, {"images/a.jpg": b"1", "masks/a.png": b"1"})
    source = find_samples(url)
    assert pairs(source) == [("train", "a", "images/a.jpg", "masks/a.png")]
    assert source.pairs[0].image_url == f"{url}/images/a.jpg"


def test_real_camvid(camvid_dir: Path) -> None:
    source = find_samples(str(camvid_dir))
    assert source.layout == "camvid"
    assert Counter(pair.split for pair in source.pairs) == {"train": 367, "val": 101}


def test_real_coco(coco_dir: Path) -> None:
    source = find_samples(str(coco_dir))
    assert source.layout == "voc"
    assert Counter(pair.split for pair in source.pairs) == {"train": 102, "val": 26}


def test_masks_of_further_heads_stand_in_folders_of_their_own(make) -> None:
    url = make(
        *("images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png", "masks-geo/a_mask.png"),
        *("classes-geo.csv",),
    )
    source = find_samples(url, val_fraction=0)
    a, b = source.pairs
    assert {head: path for head, (path, _) in a.further.items()} == {"geo": "masks-geo/a_mask.png"}
    assert b.further == {}
    assert kinds(source) == {
        "unlabelled_head": "1 images have no mask of head geo: not labelled for it"
    }
    assert source.further_class_files == {"geo": f"{url}/classes-geo.csv"}


def test_further_masks_follow_the_splits(make) -> None:
    paths = [f"{kind}/{split}/1.png" for kind in ("images", "masks", "masks-geo")
             for split in ("train", "val")]  # fmt: skip
    source = find_samples(make(*paths))
    assert [pair.further["geo"][0] for pair in source.pairs] == [
        "masks-geo/train/1.png",
        "masks-geo/val/1.png",
    ]


def test_a_further_mask_without_an_image_or_twice_is_an_error(make) -> None:
    further = ["masks-geo/a.png", "masks-geo/a.bmp", "masks-geo/lost.png"]
    source = find_samples(make("images/a.png", "masks/a.png", *further))
    assert kinds(source)["mask_without_image"] == "no image for masks-geo/lost.png"
    assert kinds(source)["ambiguous_name"] == (
        "a is the name of images/a.png and masks/a.png and masks-geo/a.bmp and masks-geo/a.png"
    )


def test_an_image_with_a_further_mask_alone_lacks_its_mask(make) -> None:
    source = find_samples(make("images/a.png", "images/b.png", "masks/b.png", "masks-geo/a.png"))
    assert kinds(source)["image_without_mask"] == "no mask for images/a.png"


@pytest.mark.parametrize("name", ["main", "rle", "a b", "_x"])
def test_a_head_has_a_name_that_columns_can_bear(name: str, make) -> None:
    url = make("images/a.png", "masks/a.png", f"masks-{name}/a.png")
    with pytest.raises(
        DatasetError, match=rf"masks-{name}: .*(no name of a head|rename the folder)"
    ):
        find_samples(url)
