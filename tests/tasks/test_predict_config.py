"""Settings that cannot work are refused; the digest counts what decides a row."""

import pytest
from pydantic import ValidationError

from fcn.bands import Band
from fcn.errors import DeviceError
from fcn.images import MAX_PIXELS
from tasks.budget import least_budget
from tasks.predict_config import PredictConfig, run_digest


@pytest.mark.parametrize(
    "settings",
    [{"max_image_pixels": MAX_PIXELS + 1}, {"device": "mps"}, {"device": "gpu"}, {"sinks": ()}],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        PredictConfig.model_validate(settings)


def test_digest_counts_the_precision_that_auto_stands_for() -> None:
    def digest(precision: str) -> str:
        config = PredictConfig.model_validate({"device": "cpu", "precision": precision})
        return run_digest("0" * 64, config)

    assert digest("auto") == digest("fp32") != digest("bf16")


def test_digest_counts_the_backend_that_auto_stands_for() -> None:
    def digest(**settings: str) -> str:
        return run_digest("0" * 64, PredictConfig.model_validate({"device": "cpu", **settings}))

    found = [digest(backend=name) for name in ("torch", "openvino", "onnxruntime")]
    assert len(set(found)) == 3
    assert digest(backend="auto") == digest(backend="openvino")  # installed for development


def test_digest_of_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(DeviceError, match="cuda:99"):
        run_digest("0" * 64, PredictConfig(device="cuda:99"))


def test_budget_must_hold_the_largest_image() -> None:
    least = least_budget(1_000_000, 5_000_000)
    limits = {"max_image_pixels": 1_000_000, "max_image_bytes": 5_000_000}
    PredictConfig.model_validate({"memory_budget": least, **limits})
    with pytest.raises(ValidationError, match=r"max_image_pixels=1,000,000 .* may take 60,000,000"):
        PredictConfig.model_validate({"memory_budget": least - 1, **limits})
    PredictConfig()  # the default holds what is allowed by default


def test_budget_must_hold_the_largest_image_with_its_bands() -> None:
    bands = [Band("depth", "uint16", 0, 1), Band("height", "float32", 0, 1)]
    limits = {"max_image_pixels": 1_000_000, "max_image_bytes": 5_000_000}
    config = PredictConfig.model_validate(
        {"memory_budget": least_budget(*limits.values()), **limits}
    )
    config.require_room()
    with pytest.raises(ValueError, match=r"1,000,000 with the bands depth, height .* 66,000,000"):
        config.require_room(bands)
    PredictConfig().require_room(bands)  # the default holds what is allowed by default


def test_budget_must_hold_the_largest_image_with_the_masks_of_all_heads() -> None:
    limits = {"max_image_pixels": 1_000_000, "max_image_bytes": 5_000_000}
    config = PredictConfig.model_validate(
        {"memory_budget": least_budget(*limits.values()), **limits}
    )
    with pytest.raises(ValueError, match=r"1,000,000 and masks of 9 heads .* 68,000,000"):
        config.require_room(num_heads=9)


def test_budget_changes_no_row() -> None:
    digests = {
        run_digest("0" * 64, PredictConfig(device="cpu", memory_budget=budget << 30))
        for budget in (10, 20)
    }
    assert len(digests) == 1
