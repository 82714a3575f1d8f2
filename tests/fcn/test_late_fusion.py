"""A network of two trunks: each sees a part of the image, and their scores are averaged."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

import fcn
from fcn.checkpoint import CARD_KEY, read_safetensors, to_bytes
from fcn.errors import CheckpointError
from fcn.export import to_onnx
from fcn.input import NYUD_COLOR_HHA
from fcn.quantise import quantise
from fcn.streams import Labeller
from fcn.trunks import classifier
from fcn.weights import transplant
from tests.fcn.models import varied_model

CLASSES = fcn.Classes.named(map(str, range(5)))


@pytest.fixture(scope="module")
def model() -> fcn.Model:
    """FCN-8s with one skip: three colours, and three bands through a trunk of their own."""
    net = fcn.FCN("squeezenet1_1", 5, 8, in_channels=6, modalities=(3, 3))
    color = varied_model("squeezenet1_1").net.state_dict()
    torch.manual_seed(3)
    hha = {name: tensor * (0.5 + torch.rand(())) for name, tensor in color.items()}
    net.load_state_dict(color | {f"beside.0.{name}": tensor for name, tensor in hha.items()})
    with torch.no_grad():  # none of the scores is above the others everywhere
        pixels = torch.randint(0, 256, (1, 6, 97, 131), dtype=torch.uint8)
        net.score_fr.bias -= 2 * net.eval()(NYUD_COLOR_HHA.normalise(pixels)).mean(dim=(0, 2, 3))
    return fcn.Model(net.eval(), CLASSES, NYUD_COLOR_HHA)


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (53, 70, 6), np.uint8)


@torch.no_grad()
def expected_scores(model: fcn.Model, image: np.ndarray) -> torch.Tensor:
    """By hand: two networks of one trunk each, and the mean of what they say."""
    pixels = torch.from_numpy(image[..., [2, 1, 0, 3, 4, 5]]).permute(2, 0, 1)[None].float()
    pixels = pixels - torch.tensor(model.input.means).view(1, -1, 1, 1)
    state, scores = model.net.state_dict(), []
    for prefix, seen in (("", pixels[:, :3]), ("beside.0.", pixels[:, 3:])):
        net = fcn.FCN("squeezenet1_1", 5, 8)
        net.load_state_dict({name: state[prefix + name] for name in net.state_dict()})
        scores.append(net.eval()(seen))
    return 0.5 * scores[0] + 0.5 * scores[1]


def test_scores_are_the_mean_of_both_trunks(model, image) -> None:
    expected = expected_scores(model, image)
    with torch.no_grad():
        found = model.net(model.input.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))
    assert expected.std() > 1e-2
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_model_file_keeps_both_trunks(model) -> None:
    data = to_bytes(model)
    again = fcn.load(data)
    assert again.net.modalities == (3, 3)
    assert again.input == NYUD_COLOR_HHA
    state = model.net.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.net.state_dict().items())
    plain = read_safetensors(to_bytes(varied_model("squeezenet1_1")))[1]
    assert "modalities" not in json.loads(plain[CARD_KEY])


def test_every_way_to_labels_gives_those_of_the_scores(model, image) -> None:
    expected = expected_scores(model, image)[0].argmax(dim=0).numpy()
    assert len(np.unique(expected)) > 1
    assert (fcn.Predictor(model, device="cpu")([image])[0] == expected).mean() > 0.999
    tiled = fcn.Predictor(model, device="cpu", tile_size=32)
    assert (tiled([image])[0] == expected).mean() > 0.999
    with torch.inference_mode():
        label, _ = Labeller(model.net, model.input, [5])(
            torch.from_numpy(image[None]), (0, 0, 53, 70)
        )
    assert (label[0].numpy() == expected).mean() > 0.999


def test_runtimes_take_both_trunks(model, image) -> None:
    pytest.importorskip("onnxruntime")
    expected = expected_scores(model, image)[0].argmax(dim=0).numpy()
    assert (fcn.Predictor(model, backend="onnxruntime")([image])[0] == expected).mean() > 0.999
    whole = quantise(model, [image])
    assert (fcn.Predictor(whole, backend="onnxruntime")([image])[0] == expected).mean() > 0.9


@torch.no_grad()
def test_an_exported_network_has_both_trunks(image) -> None:
    """Of few layers: to capture a network for images of any size takes long."""
    pytest.importorskip("onnxscript")
    import onnxruntime

    torch.manual_seed(0)
    net = fcn.FCN("alexnet", 5, 32, in_channels=6, modalities=(3, 3)).eval()
    for trunk in (net, *net.beside):
        torch.nn.init.normal_(trunk.score_fr.weight)
    file = io.BytesIO()
    to_onnx(fcn.Model(net, CLASSES, NYUD_COLOR_HHA), file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    pixels = image.transpose(2, 0, 1)[None]
    (found,) = session.run(["scores"], {"image": pixels.astype(np.float32)})
    expected = net(NYUD_COLOR_HHA.normalise(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("modalities", [(), (3,), (3, 2), (6, 0), (3, 4, -1)])
def test_modalities_are_all_channels(modalities: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"in_channels must be those of all modalities .*, not 6"):
        fcn.FCN("squeezenet1_1", 2, in_channels=6, modalities=modalities)


def test_a_classifier_starts_every_trunk() -> None:
    source = classifier("squeezenet1_1").state_dict()
    net = fcn.FCN("squeezenet1_1", 5, 8, in_channels=5, modalities=(3, 2))
    done = transplant(net, "x", CLASSES, lambda _: save_tensors(source))
    assert set(done.left) == {name for name in net.state_dict() if "score" in name}
    assert done.coerced == ("beside.0.trunk.features.0.weight",)
    first, second = "features.0.weight", "features.3.squeeze.weight"
    for prefix in ("trunk.", "beside.0.trunk."):
        assert torch.equal(net.state_dict()[prefix + second], source[second])
    assert torch.equal(net.state_dict()[f"trunk.{first}"], source[first])
    mean = source[first].mean(dim=1, keepdim=True)
    assert torch.equal(net.state_dict()[f"beside.0.trunk.{first}"], mean.repeat(1, 2, 1, 1))


def test_a_finer_net_takes_all_of_both_trunks(model) -> None:
    coarse = fcn.FCN("squeezenet1_1", 5, 16, in_channels=6, modalities=(3, 3))
    given = to_bytes(replace(model, net=coarse))
    net = fcn.FCN("squeezenet1_1", 5, 8, in_channels=6, modalities=(3, 3))
    done = transplant(net, "x", CLASSES, lambda _: given)
    assert set(done.copied) == set(coarse.state_dict())
    assert done.from_stride == 16
    other = fcn.Classes.named("01abc")
    named = transplant(net, "x", other, lambda _: given, init_classes="by_name")
    scores = {"score_fr.weight", "score_fr.bias"}
    assert set(named.coerced) == scores | {f"beside.0.{name}" for name in scores}


def test_one_trunk_does_not_start_from_two(model) -> None:
    net = fcn.FCN("squeezenet1_1", 5, 8, in_channels=6)
    message = (
        r"a model of trunks for 3 \+ 3 channels \(late fusion\), but one of one trunk was asked"
    )
    with pytest.raises(CheckpointError, match=message):
        transplant(net, "x", CLASSES, lambda _: to_bytes(model))
    other = replace(model, net=net, input=NYUD_COLOR_HHA)
    with pytest.raises(CheckpointError, match=r"of one trunk, but one of trunks for 3 \+ 3"):
        transplant(model.net, "x", CLASSES, lambda _: to_bytes(other))
