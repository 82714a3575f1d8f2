"""``python -m fcn predict`` on local files."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fcn
from fcn.__main__ import main
from fcn.input import TORCHVISION
from tests.fcn.models import two_headed_model, varied_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    torch.manual_seed(0)
    classes = fcn.Classes.named(["sky", "road", "car"])
    net = fcn.FCN("squeezenet1_1", num_classes=len(classes), stride=16)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    fcn.save(fcn.Model(net, classes, TORCHVISION), path)
    return path


@pytest.fixture
def photo(tmp_path, rng):
    path = tmp_path / "photo.jpg"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def predict(*images, model, out):
    return main(["predict", *map(str, images), "--model", str(model), "--out", str(out)])


def test_mask_and_overlay_have_the_size_of_the_image(photo, model_path, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert predict(photo, model=model_path, out=out) == 0
    (label,) = fcn.Predictor(fcn.load(model_path))([pixels(photo)])
    with Image.open(out / "photo.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), label)
    assert pixels(out / "photo-overlay.jpg").shape == (40, 60, 3)
    assert str(out / "photo.png") in capsys.readouterr().out


def test_a_backend_is_taken_by_its_name(photo, model_path, tmp_path, capsys):
    command = ["predict", str(photo), "--model", str(model_path), "--out", str(tmp_path / "out")]
    assert main([*command, "--backend", "torch"]) == 0
    (label,) = fcn.Predictor(fcn.load(model_path), backend="torch")([pixels(photo)])
    with Image.open(tmp_path / "out" / "photo.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), label)
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--backend", "openvino", "--device", "cuda"])
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--backend", "tensorflow"])
    assert "invalid choice: 'tensorflow'" in capsys.readouterr().err


def test_a_bad_image_is_reported_and_the_others_go_on(photo, model_path, tmp_path, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photo.read_bytes()[:300])
    absent = tmp_path / "absent.jpg"
    assert predict(bad, absent, photo, model=model_path, out=tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert f"error: {bad}: " in errors
    assert str(absent) in errors
    assert "error: 2 of 3 images failed" in errors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "photo-overlay.jpg",
        "photo.png",
    ]


@pytest.mark.parametrize("model", ["absent.safetensors", "corrupt.safetensors"])
def test_a_model_that_cannot_be_loaded_is_a_bad_argument(model, photo, tmp_path, capsys):
    (tmp_path / "corrupt.safetensors").write_bytes(b"not a model")
    with pytest.raises(SystemExit) as stop:
        predict(photo, model=tmp_path / model, out=tmp_path / "out")
    assert stop.value.code == 2
    assert model in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_images_is_a_bad_argument(photo, tmp_path, capsys):
    net = fcn.FCN("squeezenet1_1", 2, 16, in_channels=4)
    path = tmp_path / "model.safetensors"
    fcn.save(fcn.Model(net, fcn.Classes.named("ab"), TORCHVISION), path)
    with pytest.raises(SystemExit) as stop:
        predict(photo, model=path, out=tmp_path / "out")
    assert stop.value.code == 2
    assert "the model sees 4 channels" in capsys.readouterr().err


def test_every_head_has_a_mask_and_an_overlay(photo, tmp_path):
    path, out = tmp_path / "model.safetensors", tmp_path / "out"
    fcn.save(two_headed_model(), path)
    assert predict(photo, model=path, out=out) == 0
    (found,) = fcn.Predictor(fcn.load(path)).predict([pixels(photo)])
    np.testing.assert_array_equal(pixels(out / "photo.png"), found.label)
    np.testing.assert_array_equal(pixels(out / "photo-geo.png"), found.further["geo"].label)
    assert pixels(out / "photo-geo-overlay.jpg").shape == (40, 60, 3)


@pytest.fixture
def banded(tmp_path, rng):
    """An image with a band beside its folder, and the path of a model that sees it."""
    for name in ("images", "bands-depth"):
        (tmp_path / name).mkdir()
    image = tmp_path / "images/one.png"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(image)
    depth = rng.integers(0, 4000, (40, 60), np.uint16)
    Image.fromarray(depth).save(tmp_path / "bands-depth/one.tif")
    spec = replace(TORCHVISION, bands=(fcn.Band("depth", "uint16", 2000.0, 900.0),))
    path = tmp_path / "model.safetensors"
    fcn.save(varied_model("squeezenet1_1", 3, 16, spec), path)
    return image, path


def test_bands_are_found_beside_the_folder_of_an_image(banded, tmp_path, capsys):
    image, model = banded
    assert predict(image, model=model, out=tmp_path / "out") == 0
    stacked = np.dstack([pixels(image), pixels(tmp_path / "bands-depth/one.tif")])
    (label,) = fcn.Predictor(fcn.load(model))([stacked])
    np.testing.assert_array_equal(pixels(tmp_path / "out/one.png"), label)

    (tmp_path / "bands-depth").rename(tmp_path / "elsewhere")
    assert predict(image, model=model, out=tmp_path / "out") == 1
    assert "no band depth: there is no" in capsys.readouterr().err
    given = ["--band", f"depth={tmp_path / 'elsewhere'}"]
    assert predict(image, *given, model=model, out=tmp_path / "out-2") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "out-2/one.png"), label)


def test_folders_of_bands_that_cannot_be_are_bad_arguments(banded, photo, tmp_path, capsys):
    image, model = banded
    for given, out, message in (
        (["--band", "nir=x"], "out", "must be NAME=DIR, of a band that the model sees: depth"),
        (["--band", "depth"], "out", "must be NAME=DIR"),
        ([], "bands-depth", "masks would overwrite band depth; choose another --out"),
    ):
        with pytest.raises(SystemExit) as stop:
            predict(image, *given, model=model, out=tmp_path / out)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_masks_of_two_heads_never_overwrite_each_other(photo, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    fcn.save(two_headed_model(), path)
    with pytest.raises(SystemExit) as stop:
        predict(photo, tmp_path / "photo-geo.jpg", model=path, out=tmp_path / "out")
    assert stop.value.code == 2
    assert "two masks would be written as" in capsys.readouterr().err


def test_two_images_of_one_name_are_refused(photo, model_path, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        predict(photo, tmp_path / "other" / "photo.png", model=model_path, out=tmp_path / "out")
    assert stop.value.code == 2
    assert "2 images would be written as" in capsys.readouterr().err


def test_an_image_is_never_overwritten_by_its_mask(model_path, tmp_path, capsys):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    image = tmp_path / "image.png"
    image.write_bytes(buffer.getvalue())
    with pytest.raises(SystemExit) as stop:
        predict(image, model=model_path, out=tmp_path)
    assert stop.value.code == 2
    assert f"would overwrite {image}" in capsys.readouterr().err
    assert image.read_bytes() == buffer.getvalue()


def test_a_file_in_the_place_of_the_folder_is_a_bad_argument(photo, model_path, capsys):
    with pytest.raises(SystemExit) as stop:
        predict(photo, model=model_path, out=photo)
    assert stop.value.code == 2
    assert f"--out cannot be made: [Errno 17] File exists: '{photo}'" in capsys.readouterr().err
