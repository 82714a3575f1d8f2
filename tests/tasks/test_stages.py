from pathlib import Path

import pytest
import torch

from fcn.checkpoint import Model, to_bytes
from fcn.input import TORCHVISION
from fcn.model import FCN
from fcn.recipes import TrainConfig
from fcn.weights import transplant
from tasks.runs import RunError
from tasks.stages import plan_stages
from tasks.stores import StoreError
from tests.fcn.scenes import CLASSES


def test_stages_lead_from_the_coarsest_stride_to_the_one_asked_for(tmp_path: Path) -> None:
    config = TrainConfig(backbone="vgg16", stride=8, init="imagenet", epochs=7)
    stages = plan_stages(str(tmp_path), config)
    assert [stage.name for stage in stages] == ["32s", "16s", "8s"]
    assert [stage.run_url for stage in stages] == [str(tmp_path / s.name) for s in stages]
    assert [stage.config.stride for stage in stages] == [32, 16, 8]
    assert [stage.config.init for stage in stages] == [
        "imagenet",
        str(tmp_path / "32s" / "model.safetensors"),
        str(tmp_path / "16s" / "model.safetensors"),
    ]
    assert {(s.config.epochs, s.config.learning_rate) for s in stages} == {(7, None)}


def test_a_learning_rate_that_is_given_is_divided_as_the_recipe_says(tmp_path: Path) -> None:
    config = TrainConfig(recipe="reference", learning_rate=1e-3)
    rates = [stage.config.learning_rate for stage in plan_stages(str(tmp_path), config)]
    assert rates == pytest.approx([1e-3, 1e-5, 1e-7])


def test_the_coarsest_network_is_a_stage_of_its_own(tmp_path: Path) -> None:
    config = TrainConfig(backbone="squeezenet1_1", stride=16)
    (stage,) = plan_stages(str(tmp_path), config)
    assert (stage.name, stage.config) == ("16s", config)


def test_training_at_once_has_no_stages(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="train with at_once, or train_staged without"):
        plan_stages(str(tmp_path), TrainConfig(at_once=True))


def test_credentials_in_a_run_url_are_refused() -> None:
    with pytest.raises(StoreError, match="s3://bucket/run was given with a user name"):
        plan_stages("s3://user:hush@bucket/run", TrainConfig())


def test_a_finer_network_starts_with_the_prediction_of_the_coarser_one() -> None:
    """But for the interpolation: two bilinear steps of 2 and 16 are not one of 32."""
    torch.manual_seed(0)
    coarse, fine = FCN("resnet18", 2, 32), FCN("resnet18", 2, 16)
    torch.nn.init.normal_(coarse.score_fr.weight)
    data = to_bytes(Model(coarse, CLASSES, TORCHVISION))
    done = transplant(fine, "coarse", CLASSES, lambda _: data)
    image = torch.rand(1, 3, 160, 224)
    with torch.no_grad():
        expected, found = coarse.eval()(image), fine.eval()(image)
    assert done.from_stride == 32
    spread = expected.std()
    assert spread > 0
    assert (found - expected).square().mean().sqrt() < 0.05 * spread
    agree = found.argmax(dim=1) == expected.argmax(dim=1)
    assert agree.float().mean() > 0.98
