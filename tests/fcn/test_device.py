import pytest
import torch

from fcn.device import autocast


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown precision 'fp8'; known are auto, fp32, bf16, f"):
        autocast(torch.device("cpu"), "fp8")  # type: ignore[arg-type]
