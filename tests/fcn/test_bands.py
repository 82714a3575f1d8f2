"""Bands beside the colours: decoded as they are, and through every way that runs a network."""

import copy
import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image

import fcn
from fcn.bands import GDAL_NODATA, Band, decode_band, decode_stacked, stack
from fcn.checkpoint import to_bytes
from fcn.errors import BandError, ImageTooLarge, MissingBand, ScoresNotFinite
from fcn.export import to_onnx, to_torch_export
from fcn.input import CAFFE, TORCHVISION, InputSpec
from fcn.names import check_band_name
from fcn.quantise import quantise
from fcn.streams import Labeller
from tests.fcn.models import varied_model

DEPTH = Band("depth", "uint16", 2000.0, 900.0)
HEIGHT = Band("height", "float32", -3.0, 2.5)
INFRARED = Band("nir", "uint8", 120.0, 60.0)
SIZES = [(97, 131), (64, 64), (33, 47), (1, 1), (1, 40)]


def encoded(values: np.ndarray, kind: str = "TIFF", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def with_bands(*bands: Band, spec: InputSpec = CAFFE) -> InputSpec:
    return InputSpec(channel_order=spec.channel_order, mean=spec.mean, std=spec.std, bands=bands)


@pytest.fixture(scope="module")
def model() -> fcn.Model:
    """BGR, a band of 16 bits and one of floats."""
    return varied_model("squeezenet1_1", 5, 8, with_bands(DEPTH, HEIGHT))


def picture(rng: np.random.Generator, *size: int) -> np.ndarray:
    """An image with the bands of `model`."""
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    depth = rng.integers(0, 4000, size, np.uint16)
    return np.dstack([image, depth, rng.normal(-3, 2, size).astype(np.float32)])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.arange(12, dtype=np.uint8), "PNG"),
        (np.arange(12, dtype=np.uint8), "TIFF"),
        (np.arange(60_000, 60_012, dtype=np.uint16), "PNG"),
        (np.arange(60_000, 60_012, dtype=np.uint16), "TIFF"),
        (np.linspace(-2, np.float32(1e30), 12, dtype=np.float32), "TIFF"),
    ],
)
def test_a_band_is_decoded_as_its_file_holds_it(values, kind) -> None:
    found = decode_band(encoded(values.reshape(3, 4), kind))
    assert found.dtype == values.dtype
    assert np.array_equal(found, values.reshape(3, 4))


def test_a_band_of_big_endian_shorts_comes_in_this_machines_order() -> None:
    image = Image.new("I;16B", (4, 3), 1000)
    file = io.BytesIO()
    image.save(file, "TIFF")
    found = decode_band(file.getvalue())
    assert (found.dtype, set(found.flat)) == (np.dtype(np.uint16), {1000})


def test_signed_integers_become_floats_unless_these_do_not_hold_them() -> None:
    found = decode_band(encoded(np.array([[-12, 2**24]], np.int32)))
    assert (found.dtype, found.tolist()) == (np.float32, [[-12.0, 2.0**24]])
    with pytest.raises(BandError, match="values from -12 to 16,777,217; save integers"):
        decode_band(encoded(np.array([[-12, 2**24 + 1]], np.int32)))


def tiff(kind: int, bits: int, values: bytes, *, black: int = 1) -> bytes:
    """A TIFF of one row of two gray values, of a sample format that Pillow does not write."""
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, black), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(values)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack("<2sHI", b"II", 42, 8 + len(values))
    return start + values + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_integers_without_a_sign_keep_their_values() -> None:
    found = decode_band(tiff(1, 32, struct.pack("<II", 7, 2**24)))
    assert (found.dtype, found.tolist()) == (np.float32, [[7.0, 2.0**24]])
    with pytest.raises(BandError, match=r"values from 7 to 4,294,967,295; save integers"):
        decode_band(tiff(1, 32, struct.pack("<II", 7, 2**32 - 1)))


def test_values_are_those_of_the_file_where_white_is_zero() -> None:
    for bits, kind, dtype in ((8, 1, np.uint8), (16, 1, np.uint16), (32, 3, np.float32)):
        values = np.array([[7, 200]], dtype)
        found = decode_band(tiff(kind, bits, values.tobytes(), black=0))
        assert (found.dtype, found.tolist()) == (dtype, values.tolist())


LOWEST = np.finfo(np.float32).min


@pytest.mark.parametrize(
    ("values", "nodata", "dtype", "expected"),
    [
        (np.float32([2.5, -9999]), "-9999", np.float32, [2.5, np.nan]),
        (np.float32([2.5, LOWEST]), "-3.40282346638528898e+38", np.float32, [2.5, np.nan]),
        (np.float32([2.5, LOWEST]), "-1.7976931348623157e+308", np.float32, [2.5, LOWEST]),
        (np.float32([2.5, np.nan]), "nan", np.float32, [2.5, np.nan]),
        (np.uint16([0, 700]), "0", np.float32, [np.nan, 700]),
        (np.uint16([1, 700]), "0", np.float32, [1, 700]),
        (np.uint16([0, 700]), "-9999", np.uint16, [0, 700]),
        (np.uint8([0, 255]), "255 ", np.float32, [0, np.nan]),
        (np.uint8([0, 255]), "0.5", np.uint8, [0, 255]),
        (np.int32([-12, -(2**31)]), "-2147483648", np.float32, [-12, np.nan]),
        (np.int32([-(2**31)] * 2), "-2147483648", np.float32, [np.nan, np.nan]),
    ],
)
def test_what_gdal_calls_nodata_is_not_known(values, nodata, dtype, expected) -> None:
    """Whether a pixel has the value or not, so that all files of a band have one dtype."""
    found = decode_band(encoded(values[None], tiffinfo={GDAL_NODATA: nodata}))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], np.array(expected, dtype))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            encoded(np.zeros((1, 2), np.float32), tiffinfo={GDAL_NODATA: "none"}),
            "GDAL_NODATA, the value of unknown pixels, is 'none'; expected a number",
        ),
        (tiff(1, 4, b"\x12"), "4 bits; save"),
        (encoded(np.zeros((1, 2), np.uint8), "PNG", bits=4), "4 bits; save"),
        (tiff(2, 8, b"\x07\xff"), "8 bits, one of them the sign; save"),
        (tiff(3, 64, struct.pack("<dd", 7, 8)), "TIFF: .*; floats have to have 32 bits"),
    ],
    ids=["nodata", "TIFF of 4 bits", "PNG of 4 bits", "signed bytes", "floats of 64 bits"],
)
def test_values_that_would_come_changed_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BandError, match=message):
        decode_band(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "zero bytes"),
        (b"depth", "no decoder knows this format"),
        (encoded(np.zeros((5, 4), np.uint8), "PNG")[:-20], "PNG"),
        (encoded(np.zeros((5, 4, 3), np.uint8), "PNG"), "the image is RGB; expected a gray one"),
        (encoded(np.zeros((5, 4), np.uint8), "JPEG"), "JPEG holds no band; expected a gray PNG"),
    ],
)
def test_what_is_no_band_is_refused(data, message) -> None:
    with pytest.raises(BandError, match=message):
        decode_band(data)


def test_a_band_above_the_limit_is_not_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="above the limit of 19"):
        decode_band(encoded(np.zeros((5, 4), np.uint8)), max_pixels=19)


@pytest.mark.parametrize("name", ["", "near-infrared", "a/b", "_a", "a__b", "ä"])
def test_names_that_no_band_can_have(name) -> None:
    with pytest.raises(ValueError, match="no name of a band"):
        check_band_name(name)


def test_bands_are_stacked_behind_the_colours(rng) -> None:
    image = rng.integers(0, 256, (3, 4, 3), np.uint8)
    near = rng.integers(0, 256, (3, 4), np.uint8)
    height = rng.normal(size=(3, 4)).astype(np.float32)
    height[1, 2], height[0, 0] = np.nan, np.inf
    assert stack(image, {}, []) is image
    assert stack(image, {"nir": near}, [INFRARED]).dtype == np.uint8
    found = stack(image, {"nir": near, "height": height, "x": near}, [HEIGHT, INFRARED])
    assert found.dtype == np.float32
    assert np.array_equal(found[..., [0, 1, 2, 4]], np.dstack([image, near]))
    assert found[1, 2, 3] == found[0, 0, 3] == HEIGHT.mean
    assert found[2, 3, 3] == height[2, 3]


def test_bands_that_do_not_fit_are_named() -> None:
    image = np.zeros((3, 4, 3), np.uint8)
    small, gray = encoded(np.zeros((4, 3), np.uint8)), encoded(np.zeros((3, 4), np.uint8))
    for files, error, message in (
        ({}, MissingBand, "the image has no band nir"),
        ({"nir": None}, MissingBand, "the image has no band nir"),
        ({"nir": b"x"}, BandError, "band nir: no decoder knows"),
        ({"nir": small}, BandError, r"band nir is 4 x 3 \(height x width\), its image 3 x 4"),
    ):
        with pytest.raises(error, match=message):
            decode_stacked(image, files, [INFRARED])
    with pytest.raises(BandError, match="band depth holds uint8, expected uint16"):
        decode_stacked(image, {"depth": gray}, [DEPTH])


def test_a_model_file_keeps_its_bands_and_one_without_says_nothing_of_them(model) -> None:
    assert fcn.load(to_bytes(model)).input == model.input
    plain = to_bytes(varied_model("squeezenet1_1", 5, 8, TORCHVISION))
    size = int.from_bytes(plain[:8], "little")
    card = json.loads(json.loads(plain[8 : 8 + size])["__metadata__"]["fcn"])
    assert list(card["input"]) == ["channel_order", "mean", "std"]
    assert fcn.load(plain).input == TORCHVISION


def test_bands_and_channels_have_to_agree() -> None:
    net = fcn.FCN("squeezenet1_1", 2, in_channels=4)
    with pytest.raises(ValueError, match="5 channels, of them bands depth, nir; the network sees"):
        fcn.Model(net, fcn.Classes.named("ab"), with_bands(DEPTH, INFRARED))
    with pytest.raises(ValueError, match="a band is there twice: nir, nir"):
        with_bands(INFRARED, INFRARED)


def expected_scores(model: fcn.Model, images: np.ndarray) -> np.ndarray:
    """By hand: colours in reverse, every channel less its mean, over its deviation."""
    pixels = np.concatenate([images[..., 2::-1], images[..., 3:]], axis=3).astype(np.float32)
    normalised = (pixels - np.float32(model.input.means)) / np.float32(model.input.stds)
    with torch.no_grad():
        scores: torch.Tensor = model.net.eval()(torch.from_numpy(normalised).permute(0, 3, 1, 2))
    return scores.numpy()


def test_a_predictor_takes_bands_behind_the_colours(model, rng) -> None:
    image = picture(rng, 40, 56)
    before = image.copy()
    expected = expected_scores(model, image[None])[0].argmax(axis=0)
    for predictor in (fcn.Predictor(model, device="cpu"), fcn.AveragedPredictor(model)):
        (label,) = predictor([image])
        assert (label == expected).mean() > 0.999
        assert len(np.unique(label)) > 1
    assert np.array_equal(image, before)
    tiled = fcn.Predictor(model, device="cpu", tile_size=32)
    assert (tiled([image])[0] == expected).mean() > 0.999


def test_what_is_not_known_in_a_band_counts_as_its_mean(model, rng) -> None:
    hidden = picture(rng, 40, 56)
    hidden[5:20, 5:20, 4] = np.nan
    hidden[30, 30, 4] = -np.inf
    filled = np.where(np.isfinite(hidden), hidden, np.float32(HEIGHT.mean))
    for predictor in (fcn.Predictor(model, device="cpu"), fcn.AveragedPredictor(model, flip=True)):
        found, expected = predictor.predict([hidden, filled])
        assert np.array_equal(found.label, expected.label)
        assert found.confidence == expected.confidence
    normalised = model.input.normalise(torch.from_numpy(hidden).permute(2, 0, 1)[None])
    assert (normalised[0, 4, 5:20, 5:20] == 0).all()


def test_an_image_whose_numbers_overflow_has_no_labels(model, rng) -> None:
    """3e38 is finite; less a mean, over a deviation and summed by a convolution it is not."""
    good, extreme = picture(rng, 40, 56), picture(rng, 40, 56)
    extreme[7, 9, 4] = 3e38
    for predictor in (fcn.Predictor(model, device="cpu"), fcn.AveragedPredictor(model)):
        with pytest.raises(ScoresNotFinite, match="extreme values in the image's bands"):
            predictor.predict([good, extreme])
        assert len(predictor([good])) == 1
    extreme[7, 9, 4] = 1e5 * HEIGHT.std  # above what fp16 holds, 65,504
    with pytest.raises(ScoresNotFinite):
        fcn.Predictor(model, device="cpu", precision="fp16").predict([extreme])
    fcn.Predictor(model, device="cpu").predict([extreme])
    labeller = Labeller(copy.deepcopy(model.net).half(), model.input, [5])
    with torch.inference_mode():
        _, sums = labeller(torch.from_numpy(np.stack([good, extreme])), (0, 0, 40, 56))
    assert torch.isfinite(sums).tolist() == [[True, False]]


def test_images_of_other_channels_are_refused(model) -> None:
    predictor = fcn.Predictor(model, device="cpu")
    for image in (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 5), np.float64)):
        with pytest.raises(ValueError, match=r"float32 H x W x 5 \(with depth, height\), found"):
            predictor([image])


@pytest.mark.parametrize("spec", [TORCHVISION, CAFFE])
def test_bands_of_eight_bits_stay_bytes(spec, rng) -> None:
    model = varied_model("squeezenet1_1", 3, 16, with_bands(INFRARED, spec=spec))
    image = rng.integers(0, 256, (40, 56, 4), np.uint8)
    (label,) = fcn.Predictor(model, device="cpu")([image])
    scores = model.net(model.input.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))
    assert (label == scores[0].argmax(dim=0).numpy()).mean() > 0.999
    with pytest.raises(ValueError, match="must be uint8"):
        fcn.Predictor(model, device="cpu")([image.astype(np.float32)])


def test_runtimes_and_integers_see_the_bands(model, rng) -> None:
    pytest.importorskip("onnxruntime")
    images = [picture(rng, 40, 56) for _ in range(2)]
    images[0][3, 4, 4] = np.nan
    own = fcn.Predictor(model, device="cpu")(images)
    runtime = fcn.Predictor(model, backend="onnxruntime")
    assert all((a == b).mean() > 0.999 for a, b in zip(own, runtime(images), strict=True))
    whole = quantise(model, images)
    labels = fcn.Predictor(whole, backend="onnxruntime")(images)
    assert all((a == b).mean() > 0.9 for a, b in zip(own, labels, strict=True))


def test_a_gpus_labeller_sees_the_bands(model, rng) -> None:
    image = picture(rng, 40, 56)
    labeller = Labeller(model.net, model.input, [5])
    with torch.inference_mode():
        label, _ = labeller(torch.from_numpy(image[None]), (0, 0, 40, 56))
    assert (label[0].numpy() == fcn.Predictor(model, device="cpu")([image])[0]).mean() > 0.999


@pytest.fixture(scope="module")
def without_skip() -> fcn.Model:
    """The bands of `model`, and no skip, which takes longer to capture than the trunk."""
    return varied_model("squeezenet1_1", 5, 16, with_bands(DEPTH, HEIGHT))


@pytest.fixture(scope="module")
def banded_onnx(without_skip) -> bytes:
    pytest.importorskip("onnxscript")
    file = io.BytesIO()
    to_onnx(without_skip, file)
    return file.getvalue()


@pytest.mark.parametrize("size", SIZES)
def test_an_exported_model_with_bands_is_the_networks_at_any_size(
    size, without_skip, banded_onnx, rng
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(banded_onnx, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.type, given.shape) == ("tensor(float)", ["batch", 5, "height", "width"])
    images = np.stack([picture(rng, *size) for _ in range(2)])
    expected = expected_scores(without_skip, images)
    (found,) = session.run(["scores"], {"image": images.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())
    hidden = images.copy()
    hidden[:, 0, 0, 4] = np.nan
    filled = np.where(np.isfinite(hidden), hidden, np.float32(HEIGHT.mean))
    a, b = (session.run(None, {"image": x.transpose(0, 3, 1, 2)})[0] for x in (hidden, filled))
    assert np.array_equal(a, b)


def test_an_exported_program_takes_bands(without_skip, rng) -> None:
    model = without_skip
    fcn.Predictor(model, device="cpu")  # leaves the weights with channels last
    file = io.BytesIO()
    to_torch_export(model, file, labels=True)
    extra = {"fcn": ""}
    program = torch.export.load(io.BytesIO(file.getvalue()), extra_files=extra).module()
    images = np.stack([picture(rng, 53, 70)])
    found = program(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert (found == expected_scores(model, images).argmax(axis=1)).mean() > 0.999
    assert [band["name"] for band in json.loads(extra["fcn"])["bands"]] == ["depth", "height"]
