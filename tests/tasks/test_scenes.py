import io
import json

import numpy as np
import pytest
from PIL import Image

from fcn.classes import IGNORE_INDEX, Classes
from fcn.errors import ImageError
from fcn.images import decode_image
from fcn.masks import decode_mask
from tasks import stores
from tasks.scenes import SCENE_CLASSES, make_scenes, paint_scene


def files(url):
    return {entry.key: stores.read_bytes(entry.url) for entry in stores.list_entries(url)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One set of scenes: every kind of file, and the URL it was written to."""
    url = str(tmp_path_factory.mktemp("scenes"))
    return make_scenes(url, num_train=8, num_val=3, num_unlabelled=9, seed=5)


@pytest.fixture(scope="module")
def labelled(made):
    """Image file and label map by key, of both splits."""
    found = files(made.source_url)
    return {
        name.removeprefix("images/"): (
            data,
            decode_mask(found[f"masks/{name[7:].rpartition('.')[0]}.png"]),
        )
        for name, data in found.items()
        if name.startswith("images/")
    }


def test_the_same_seed_gives_the_same_files_and_more_of_them():
    few = make_scenes("memory://few", num_train=2, num_val=1, num_unlabelled=3, seed=5)
    more = make_scenes("memory://more", num_train=3, num_val=2, num_unlabelled=3, seed=5)
    other = make_scenes("memory://other", num_train=2, num_val=1, num_unlabelled=3, seed=6)
    first = files(few.source_url)
    assert first.items() < files(more.source_url).items()
    assert files(few.collection_url) == files(more.collection_url)
    assert files(other.source_url)["images/train/scene-000.jpg"] not in first.values()


def test_splits_have_the_numbers_asked_for(labelled):
    splits = [key.partition("/")[0] for key in labelled]
    assert (splits.count("train"), splits.count("val")) == (8, 3)


def test_images_are_as_large_as_their_masks_once_turned_upright(labelled):
    for data, label in labelled.values():
        assert decode_image(data).pixels.shape == (*label.shape, 3)


def test_the_kinds_of_files_are_what_their_names_say(labelled):
    opened = {key: Image.open(io.BytesIO(data)) for key, (data, _) in labelled.items()}
    assert opened["train/turned-002.jpg"].getexif()[0x0112] == 6
    assert opened["train/gray-004.jpg"].mode == "L"
    assert opened["train/clear-006.png"].mode == "RGBA"
    assert len({image.size for image in opened.values()}) > 8


def test_every_class_occurs_and_nothing_but_classes_and_outlines(labelled):
    found = np.concatenate([label.ravel() for _, label in labelled.values()])
    pixels = np.bincount(found, minlength=IGNORE_INDEX + 1)
    assert pixels[: len(SCENE_CLASSES)].min() > 0.01 * found.size
    assert pixels[: len(SCENE_CLASSES)].sum() + pixels[IGNORE_INDEX] == found.size
    assert pixels[IGNORE_INDEX] < 0.04 * found.size


def test_a_turned_picture_shows_the_same_land_as_its_mask(labelled):
    data, label = labelled["train/turned-002.jpg"]
    pixels = decode_image(data).pixels.astype(float)
    sky, road = (pixels[label == SCENE_CLASSES.names.index(name)] for name in ("sky", "road"))
    assert sky.mean() > road.mean() + 30


def test_classes_are_written_beside_the_images(made):
    rows = json.loads(stores.read_bytes(stores.join(made.source_url, "classes.json")))
    assert Classes.from_json(rows) == SCENE_CLASSES


def test_the_collection_holds_one_damaged_image_among_whole_ones(made):
    found = files(made.collection_url)
    damaged = [key for key in found if "damaged" in key]
    assert len(found) == 9
    assert len(damaged) == 1
    with pytest.raises(ImageError):
        decode_image(found.pop(damaged[0]))
    for data in found.values():
        decode_image(data)


def test_pixels_between_classes_belong_to_none(rng):
    _, label = paint_scene(rng, 161, 203)
    assert label.shape == (161, 203)
    known = label != IGNORE_INDEX
    beside = known[:, 1:] & known[:, :-1] & (label[:, 1:] != label[:, :-1])
    assert beside.mean() < 0.5 * (~known).mean()


def test_a_place_that_cannot_be_written_is_refused_before_painting(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(stores.StoreError, match="file"):
        make_scenes(str(tmp_path / "file"), num_train=1, num_val=0, num_unlabelled=0)
