"""Exported models in the runtimes that they are for: equal at any size, and self-contained."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fcn
import fcn.export
from fcn.__main__ import main
from fcn.export import Pixels, to_onnx, to_torch_export
from fcn.input import CAFFE
from tests.fcn.models import two_headed_model, varied_model

SIZES = [(97, 131), (64, 64), (33, 47), (120, 160), (1, 1), (1, 40)]


def exported(write, trained: fcn.Model, **options) -> bytes:
    buffer = io.BytesIO()
    write(trained, buffer, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def squeezenet() -> fcn.Model:
    """FCN-8s with one skip, BGR input."""
    return varied_model("squeezenet1_1", 5, 8, CAFFE)


@pytest.fixture(scope="module")
def resnet() -> fcn.Model:
    """FCN-32s, RGB input. Without a skip, which takes longer to capture than the trunk."""
    return varied_model("resnet18", 5, 32)


@pytest.fixture(scope="module")
def scores_onnx(squeezenet) -> bytes:
    return exported(to_onnx, squeezenet)


@pytest.fixture(scope="module")
def labels_onnx(resnet) -> bytes:
    return exported(to_onnx, resnet, labels=True)


@pytest.fixture(scope="module")
def labels_program(squeezenet) -> bytes:
    return exported(to_torch_export, squeezenet, labels=True)


@pytest.fixture(scope="module")
def loaded(labels_program):
    """The program of torch.export and its extra files, read back."""
    extra = {"fcn": ""}
    return torch.export.load(io.BytesIO(labels_program), extra_files=extra).module(), extra


def session(data: bytes):
    import onnxruntime

    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


@torch.no_grad()
def expected_scores(trained: fcn.Model, images: np.ndarray) -> np.ndarray:
    return trained.net.eval()(trained.input.normalise(torch.from_numpy(images))).numpy()


def clear(scores: np.ndarray) -> np.ndarray:
    """Pixels whose two best scores differ by more than rounding does between runtimes."""
    first, second = np.sort(scores, axis=1)[:, ::-1][:, :2].transpose(1, 0, 2, 3)
    return first - second > 1e-5 * abs(scores).max()


@pytest.mark.parametrize("size", SIZES)
def test_onnx_scores_are_the_networks_at_any_size(size, squeezenet, scores_onnx, rng) -> None:
    images = rng.integers(0, 256, (3, 3, *size), np.uint8)
    (found,) = session(scores_onnx).run(["scores"], {"image": images})
    expected = expected_scores(squeezenet, images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("size", SIZES)
def test_onnx_labels_are_the_networks_at_any_size(size, resnet, labels_onnx, rng) -> None:
    images = rng.integers(0, 256, (1, 3, *size), np.uint8)
    (found,) = session(labels_onnx).run(["labels"], {"image": images})
    scores = expected_scores(resnet, images)
    sure = clear(scores)
    assert found.shape == (1, *size)
    assert found.dtype == np.uint8
    assert sure.mean() > 0.99
    assert min(size) == 1 or len(np.unique(found)) > 1
    assert np.array_equal(found[sure], scores.argmax(axis=1)[sure])


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 16])
def test_exported_labels_are_the_networks(size, squeezenet, loaded, rng) -> None:
    program, _ = loaded
    images = rng.integers(0, 256, (2, 3, *size), np.uint8)
    found = program(torch.from_numpy(images)).numpy()
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected_scores(squeezenet, images).argmax(axis=1))


def test_an_exported_program_refuses_images_below_its_stride(loaded) -> None:
    program, _ = loaded
    with pytest.raises(AssertionError, match="Guard failed"):
        program(torch.zeros(1, 3, 16, 40, dtype=torch.uint8))


def test_an_onnx_file_tells_what_it_takes_and_gives(scores_onnx, labels_onnx) -> None:
    import onnx

    for data, name, shape in (
        (scores_onnx, "scores", ["batch", 5, "height", "width"]),
        (labels_onnx, "labels", ["batch", "height", "width"]),
    ):
        onnx.checker.check_model(data, full_check=True)
        (image,), (output,) = session(data).get_inputs(), session(data).get_outputs()
        assert (image.name, image.type) == ("image", "tensor(uint8)")
        assert image.shape == ["batch", 3, "height", "width"]
        assert (output.name, output.shape) == (name, shape)


def test_the_files_hold_the_classes_and_their_colours(squeezenet, scores_onnx, loaded) -> None:
    _, extra = loaded
    metadata = session(scores_onnx).get_modelmeta().custom_metadata_map
    for card in (json.loads(metadata["fcn"]), json.loads(extra["fcn"])):
        assert fcn.Classes.from_json(card["classes"], card["ignore_index"]) == squeezenet.classes
        assert (card["backbone"], card["stride"]) == ("squeezenet1_1", 8)


def test_the_files_name_no_file_of_the_machine_that_wrote_them(
    scores_onnx, labels_onnx, labels_program
) -> None:
    for data in (scores_onnx, labels_onnx, labels_program):
        assert str(Path(fcn.__file__).parent).encode() not in data
        assert b"model.py" not in data


@pytest.mark.parametrize(("num_classes", "dtype"), [(256, torch.uint8), (300, torch.int32)])
def test_labels_have_room_for_every_class(num_classes, dtype) -> None:
    net = fcn.FCN("squeezenet1_1", num_classes)
    classes = fcn.Classes.named(map(str, range(num_classes)), ignore_index=65_535)
    labels = Pixels(fcn.Model(net, classes, CAFFE), labels=True).eval()
    assert net.score_fr.bias is not None
    torch.nn.init.ones_(net.score_fr.bias[-1:])
    found = labels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert found.dtype == dtype
    assert (found == num_classes - 1).all()


@pytest.mark.parametrize("write", [to_onnx, to_torch_export])
def test_models_of_other_images_are_refused(write) -> None:
    net = fcn.FCN("squeezenet1_1", 2, in_channels=4)
    with pytest.raises(ValueError, match="the model sees 4 channels"):
        write(fcn.Model(net, fcn.Classes.named("ab"), CAFFE), io.BytesIO())


@pytest.fixture(scope="module")
def two_heads() -> fcn.Model:
    """Without a skip: the heads are channels of the scores, wherever these come from."""
    return two_headed_model(stride=16)


@pytest.fixture(scope="module")
def two_heads_onnx(two_heads) -> bytes:
    return exported(to_onnx, two_heads, labels=True)


@pytest.mark.parametrize("size", SIZES)
def test_every_head_is_an_output_of_the_onnx_file(size, two_heads, two_heads_onnx, rng) -> None:
    images = rng.integers(0, 256, (2, 3, *size), np.uint8)
    running = session(two_heads_onnx)
    assert [output.name for output in running.get_outputs()] == ["labels", "labels_geo"]
    assert [output.shape for output in running.get_outputs()] == [["batch", "height", "width"]] * 2
    scores = expected_scores(two_heads, images)
    for found, own in zip(
        running.run(None, {"image": images}), np.split(scores, [3], 1), strict=True
    ):
        sure = clear(own)
        assert np.array_equal(found[sure], own.argmax(axis=1)[sure])


def test_every_head_is_an_output_of_the_program(two_heads, rng) -> None:
    images = rng.integers(0, 256, (2, 3, 53, 70), np.uint8)
    program = torch.export.load(io.BytesIO(exported(to_torch_export, two_heads))).module()
    found = program(torch.from_numpy(images))
    assert list(found) == ["scores", "scores_geo"]
    expected = expected_scores(two_heads, images)
    joined = torch.cat(list(found.values()), dim=1).detach().numpy()
    np.testing.assert_allclose(joined, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_the_card_of_an_export_names_the_classes_of_every_head(two_heads_onnx) -> None:
    import onnx

    (entry,) = onnx.load_from_string(two_heads_onnx).metadata_props
    card = json.loads(entry.value)
    assert [row["name"] for row in card["further_classes"]["geo"]] == ["0", "flat"]


def test_without_the_extra_the_error_names_it(monkeypatch, squeezenet) -> None:
    monkeypatch.setattr(fcn.export, "find_spec", lambda name: None if "script" in name else name)
    with pytest.raises(ModuleNotFoundError, match=r"needs onnxscript: pip .*fcn-flows\[export\]"):
        to_onnx(squeezenet, io.BytesIO())


def test_importing_fcn_and_its_export_imports_no_onnx() -> None:
    code = (
        "import sys, fcn, fcn.__main__, fcn.export; "
        "print([name for name in sys.modules if name.startswith('onnx')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_exports_a_model_file(tmp_path, squeezenet, capsys) -> None:
    fcn.save(squeezenet, tmp_path / "model.safetensors")
    out = tmp_path / "net.pt2"
    arguments = ["export", "--model", str(tmp_path / "model.safetensors"), "--out", str(out)]
    assert main(arguments) == 0
    assert f"-> {out}" in capsys.readouterr().out
    image = torch.zeros(1, 3, 40, 50, dtype=torch.uint8)
    assert torch.export.load(out).module()(image).shape == (1, 5, 40, 50)


@pytest.mark.parametrize(
    ("model_name", "out", "message"),
    [
        ("model.safetensors", "net.h5", "net.h5 must end in .onnx or .pt2"),
        ("absent.safetensors", "net.onnx", "absent.safetensors"),
    ],
)
def test_other_suffixes_and_models_are_bad_arguments(
    model_name, out, message, tmp_path, squeezenet, capsys
) -> None:
    fcn.save(squeezenet, tmp_path / "model.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["export", "--model", str(tmp_path / model_name), "--out", str(tmp_path / out)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
