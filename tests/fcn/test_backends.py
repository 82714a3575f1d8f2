"""Runtimes give torch's scores, whatever the size and the threads, and say what is missing."""

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save

import fcn
from fcn import backends, layers
from fcn.averaging import AveragedPredictor
from fcn.backends import find_backend
from fcn.checkpoint import read_safetensors
from fcn.errors import BackendError, CheckpointError, DeviceError
from fcn.export import to_onnx
from fcn.input import CAFFE
from fcn.layers import to_layers, to_layers_and_weights
from fcn.quantise import quantise
from tests.fcn.models import varied_model

RUNTIMES = ["openvino", "onnxruntime"]
SIZES = [(97, 131), (64, 64), (1, 1), (1, 40), (33, 47)]


@pytest.fixture(scope="module")
def squeezenet() -> fcn.Model:
    return varied_model("squeezenet1_1", 5, 8, CAFFE)


@pytest.fixture(scope="module")
def quantised(squeezenet: fcn.Model) -> fcn.Model:
    rng = np.random.default_rng(0)
    return quantise(squeezenet, rng.integers(0, 256, (4, 97, 131, 3), np.uint8))


def images(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def without_head(backbone: str, width: int) -> fcn.Model:
    """A network without fc6 and fc7, which take half a gigabyte."""
    with torch.device("meta"):
        net = fcn.FCN(backbone, 3, 8)
        net.head, net.score_fr = torch.nn.Sequential(), torch.nn.Conv2d(width, 3, 1)
    net.to_empty(device="cpu")
    torch.manual_seed(1)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return fcn.Model(net.eval(), fcn.Classes.named("abc"), CAFFE)


@torch.inference_mode()
def scores(predictor: fcn.Predictor, image: np.ndarray) -> np.ndarray:
    net, size = predictor.net, image.shape[:2]
    upscore = net.upscore(predictor._score(image[None]))
    return upscore[..., net.upscore.crop :, net.upscore.crop :][..., : size[0], : size[1]].numpy()


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [
        *(("squeezenet1_1", 8), ("resnet18", 16), ("mobilenet_v3_small", 8)),
        *(("googlenet", 16), ("regnet_x_400mf", 32)),
    ],
)
def test_scores_and_labels_are_those_of_torch(backbone, stride, rng) -> None:
    model = varied_model(backbone, 5, stride)
    torch_ = fcn.Predictor(model)
    for runtime in RUNTIMES:
        other = fcn.Predictor(model, backend=runtime)
        assert other.backend == runtime
        for image in images(rng)[:4]:
            expected, found = scores(torch_, image), scores(other, image)
            largest = abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)
            (one,), (two,) = torch_.predict([image]), other.predict([image])
            first, second = np.sort(expected[0], axis=0)[::-1][:2]
            sure = first - second > 2e-5 * largest
            assert np.array_equal(one.label[sure], two.label[sure])
            assert one.confidence == pytest.approx(two.confidence, rel=1e-4)


def test_skips_that_are_scaled_down_are_those_of_torch(rng) -> None:
    net = fcn.FCN("resnet18", 2, 16, at_once=True).eval()
    torch.nn.init.normal_(net.score_fr.weight)
    torch.nn.init.normal_(net.fuse["16"].score_pool.weight, std=9)  # type: ignore[union-attr, arg-type]
    model = fcn.Model(net, fcn.Classes.named("ab"), CAFFE)
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    expected = scores(fcn.Predictor(model), image)
    for runtime in RUNTIMES:
        found = scores(fcn.Predictor(model, backend=runtime), image)
        np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_weights_that_openvino_is_handed_in_memory_give_the_same_bits(
    squeezenet, quantised, rng, monkeypatch
) -> None:
    pictures = images(rng)
    for model, some in ((squeezenet, 1), (quantised, 0)):  # integers are written into the file
        found = []
        for least in (1 << 40, 1 << 12):
            monkeypatch.setattr(layers, "LARGE_BYTES", least)
            weights = to_layers_and_weights(model)[1]
            assert (len(weights) > 15) == (least == 1 << 12 and some == 1)
            found.append(fcn.Predictor(model, backend="openvino").predict(pictures))
        for one, other in zip(*found, strict=True):
            assert np.array_equal(one.label, other.label)
            assert one.confidence == other.confidence


@pytest.mark.parametrize(("backbone", "width"), [("vgg11", 512), ("caffenet", 256)])
def test_poolings_in_ceil_mode_are_those_of_torch(backbone, width, rng) -> None:
    """VGG's and CaffeNet's, with its normalisation, on odd maps and on maps of a single cell."""
    model = without_head(backbone, width)
    for image in (rng.integers(0, 256, (*size, 3), np.uint8) for size in [(1, 1), (37, 50)]):
        expected = scores(fcn.Predictor(model), image)
        for runtime in RUNTIMES:
            found = scores(fcn.Predictor(model, backend=runtime), image)
            np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rows_do_not_depend_on_threads_or_on_what_came_before(runtime, squeezenet, rng) -> None:
    pictures = images(rng)
    before = torch.get_num_threads()
    try:
        found = []
        for threads, order in ((1, 1), (2, -1), (3, 1)):
            torch.set_num_threads(threads)
            predictor = fcn.Predictor(squeezenet, backend=runtime)
            found.append(predictor.predict(pictures[::order])[::order])
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        for other in others:
            assert np.array_equal(one.label, other.label)
            assert one.confidence == other.confidence


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_with_a_core_each_and_those_with_all_cores_get_the_same(
    runtime, squeezenet, rng
) -> None:
    pictures = images(rng)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        predictor = fcn.Predictor(squeezenet, backend=runtime)
        expected = predictor.predict(pictures)
        torch.set_num_threads(1)  # threads take this over when they start
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(predictor.predict, [pictures] * 12))
    finally:
        torch.set_num_threads(before)
    for predictions in found:
        for one, other in zip(expected, predictions, strict=True):
            assert np.array_equal(one.label, other.label)
            assert one.confidence == other.confidence


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tiles_are_those_of_the_whole(runtime, squeezenet, rng) -> None:
    image = rng.integers(0, 256, (500, 630, 3), np.uint8)
    (whole,) = fcn.Predictor(squeezenet, backend=runtime).predict([image])
    (tiled,) = fcn.Predictor(squeezenet, backend=runtime, tile_size=200).predict([image])
    assert (whole.label != tiled.label).mean() < 1e-4
    assert tiled.confidence == pytest.approx(whole.confidence, abs=1e-5)


def test_auto_takes_the_fastest_that_is_installed(monkeypatch) -> None:
    absent: set[str] = set()
    there = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda n: None if n in absent else there(n))
    assert find_backend("auto", "cpu")[0] == "openvino"
    assert find_backend("auto", "cpu", "bf16")[0] == "torch"
    absent.add("openvino")
    assert find_backend("auto", "cpu")[0] == "onnxruntime"
    with pytest.raises(BackendError, match=r"'openvino' needs openvino: .*fcn-flows\[openvino\]"):
        find_backend("openvino", "cpu")
    absent.add("onnx")
    assert find_backend("auto", "cpu")[0] == "torch"
    with pytest.raises(BackendError, match=r"'onnxruntime' needs onnx: .*fcn-flows\[export\]"):
        find_backend("onnxruntime", "cpu")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_are_for_cpus_and_fp32(runtime) -> None:
    assert find_backend(runtime) == (runtime, torch.device("cpu"))
    with pytest.raises(BackendError, match="runs on a CPU, not on device 'cuda'"):
        find_backend(runtime, "cuda")
    with pytest.raises(BackendError, match="not in bf16"):
        find_backend(runtime, "cpu", "bf16")
    with pytest.raises(DeviceError):
        find_backend("auto", "cuda:99")


def test_an_unknown_backend_is_refused() -> None:
    known = "unknown backend 'tensorrt'; known are auto, torch, onnxruntime, openvino"
    with pytest.raises(ValueError, match=known):
        find_backend("tensorrt", "cpu")  # type: ignore[arg-type]


def test_a_layer_that_is_not_known_is_named() -> None:
    model = varied_model("resnet18", 2, 32)
    model.net.head = torch.nn.Sequential(torch.nn.GELU())  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"no ONNX is known here for net\.head\.0: GELU"):
        fcn.Predictor(model, backend="openvino")


def test_importing_openvino_reports_nothing_to_its_makers() -> None:
    code = (
        "import sys, fcn; from tests.fcn.models import varied_model; "
        "fcn.Predictor(varied_model('resnet18', 2, 32), backend='openvino'); "
        "print([name for name in sys.modules if 'telemetry' in name and 'stub' not in name"
        " and name.startswith('openvino_')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_signals_are_heard_after_openvino_went_in_another_thread() -> None:
    code = (
        "import gc, os, signal, threading, fcn; from tests.fcn.models import varied_model; "
        "box = [fcn.Predictor(varied_model('resnet18', 2, 32), backend='openvino')]; "
        "thread = threading.Thread(target=lambda: (box.clear(), gc.collect())); "
        "thread.start(); thread.join(); "
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard')); "
        "os.kill(os.getpid(), signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_integers_are_those_of_rounded_inputs_and_weights(runtime, rng) -> None:
    """The same network in torch, every convolution's input and weights rounded on the way."""
    model = without_head("vgg11", 512)
    image = rng.integers(0, 256, (97, 131, 3), np.uint8)
    plain = scores(fcn.Predictor(model), image)
    whole = quantise(model, [image])
    found = scores(fcn.Predictor(whole, backend=runtime), image)
    assert whole.ranges is not None
    for name, (low, high) in whole.ranges.items():
        layer = model.net.get_submodule(name)
        scale, weight = (high - low) / 255, layer.weight.data  # type: ignore[union-attr]
        zero = round(-low / scale)
        layer.register_forward_pre_hook(
            lambda _, inputs, scale=scale, zero=zero: (
                torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, 255),
            )
        )
        steps = weight.abs().amax(dim=(1, 2, 3)) / 63
        weight.copy_(
            torch.fake_quantize_per_channel_affine(
                weight, steps, torch.zeros_like(steps), 0, -63, 63
            )
        )
    rounded = scores(fcn.Predictor(model), image)
    # Rounding takes the last bits of floats, in which runtimes differ, to whole steps.
    assert abs(found - rounded).mean() < abs(rounded - plain).mean() / 3


def test_maps_that_are_concatenated_share_a_scale(quantised) -> None:
    """Fire modules: two convolutions whose outputs go on together, through a pooling too."""
    import onnx

    graph = onnx.load_from_string(to_layers(quantised)).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    made_by = {node.output[0]: node for node in graph.node}
    joined = [n for n in graph.node if n.op_type == "Concat" and n.input[0].startswith("Deq")]
    assert len(joined) == 8
    for node in joined:
        scales = {float(constants[made_by[name].input[1]]) for name in node.input}
        assert len(scales) == 1
    weights = [c for c in constants.values() if c.dtype == np.int8 and c.ndim == 4]
    assert len(weights) == 27
    assert max(abs(w.astype(int)).max() for w in weights) == 63


def test_a_quantised_model_is_a_model_file(quantised, tmp_path, rng) -> None:
    fcn.save(quantised, tmp_path / "model.safetensors")
    loaded = fcn.load(tmp_path / "model.safetensors")
    assert loaded.ranges == quantised.ranges
    image = rng.integers(0, 256, (50, 60, 3), np.uint8)
    one, two = (fcn.Predictor(m, backend="openvino") for m in (quantised, loaded))
    assert np.array_equal(one([image])[0], two([image])[0])


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"head.fc9": (0.0, 1.0)}, "a range for 'head.fc9', no convolution of squeezenet1_1"),
        ({"score_fr": (0.5, 1.0)}, "ranges.score_fr.0: Input should be less than or equal to 0"),
    ],
)
def test_ranges_that_cannot_be_are_refused(ranges, message, squeezenet, tmp_path) -> None:
    model = dataclasses.replace(squeezenet, ranges={"score_fr": (-1.0, 1.0)})
    fcn.save(model, tmp_path / "good")
    tensors, metadata = read_safetensors((tmp_path / "good").read_bytes())
    card = {**json.loads(metadata["fcn"]), "ranges": ranges}
    with pytest.raises(CheckpointError, match=message):
        fcn.load(save(tensors, {"fcn": json.dumps(card)}))


def test_what_quantised_models_cannot_do_is_said(quantised, tmp_path) -> None:
    with pytest.raises(BackendError, match="not in torch"):
        fcn.Predictor(quantised, device="cpu")
    with pytest.raises(BackendError, match="looks at every image once"):
        AveragedPredictor(quantised, flip=True)
    with pytest.raises(ValueError, match="export the one that it was made from"):
        to_onnx(quantised, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="quantised already"):
        quantise(quantised, [np.zeros((4, 5, 3), np.uint8)])


def test_ranges_need_images(squeezenet) -> None:
    with pytest.raises(ValueError, match="no image to see the ranges"):
        quantise(squeezenet, [])
    with pytest.raises(ValueError, match="uint8 H x W x 3"):
        quantise(squeezenet, [np.zeros((4, 5, 3), np.float32)])


def test_ranges_are_means_of_extremes_and_hold_zero(squeezenet) -> None:
    dark, bright = (np.full((40, 50, 3), value, np.uint8) for value in (90, 250))
    ranges = [quantise(squeezenet, pair).ranges for pair in ([dark], [bright], [dark, bright])]
    name = "trunk.features.0"
    low, high, both = (r[name] for r in ranges if r is not None)
    assert low[1] == 0.0
    assert high[0] == 0.0
    assert both == pytest.approx((low[0] / 2, high[1] / 2))
