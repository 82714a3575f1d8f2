"""The fused kernel against `Upscore` and the maximum, in Triton's interpreter, and compiled."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fcn.geometry import CoordinateMap
from fcn.upsample import Upscore

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: it comes with torch for CUDA"
)

# Classes, stride, rows and columns of scores, replicated border, where cell 0 lies in pixels.
CASES = [
    (1, 8, 1, 1, True, 3.5),
    (2, 8, 3, 5, True, 3.5),
    (21, 4, 3, 2, True, 0.0),
    (9, 8, 3, 4, False, 3.0),
    (3, 16, 2, 1, True, 0.0),
    (3, 32, 1, 2, False, 15.5),
    (256, 4, 1, 2, True, 1.5),
    (300, 4, 2, 1, True, 1.5),
]


def upscore(num_classes: int, stride: int, offset: float, border: bool) -> Upscore:
    return Upscore(
        num_classes, CoordinateMap(stride, offset), CoordinateMap(), replicate_border=border
    )


def check(device: str) -> None:
    """Compare all cases, whole maps and windows; run in a process of its own by the tests."""
    from fcn.fused import fused_winners
    from fcn.winners import winners

    for num_classes, stride, rows, columns, border, offset in CASES:
        layer = upscore(num_classes, stride, offset, border)
        torch.manual_seed(rows)
        scores = 4 * torch.randn(2, num_classes, rows, columns)
        strided = scores.contiguous(memory_format=torch.channels_last)
        halves = scores.bfloat16()
        for score in (scores, strided, halves) if num_classes < 22 else (scores,):
            whole = layer(score.float())
            height, width = whole.shape[2:]
            windows = [(0, 0, height, width), (height // 3, width // 4, height // 2, 1)]
            for top, left, h, w in windows:
                expected = whole[..., top : top + h, left : left + w].clone()
                two = expected.topk(min(2, num_classes), dim=1).values
                tied = (two[:, 0] - two[:, -1] < 1e-5) & (num_classes > 1)
                reached = expected.abs().amax(dim=1) > 0  # not beyond the last cell
                labels, sums = winners(expected)
                found, found_sums = fused_winners(layer, score.to(device), top, left, h, w)
                assert found.dtype == (torch.uint8 if num_classes <= 256 else torch.uint16)
                differ = found.cpu().int() != labels.int()
                assert not (differ & ~tied).any()
                if score is not halves:  # 300 of them are often equal
                    assert (tied & reached).sum() <= 0.01 * tied.numel()
                assert torch.allclose(found_sums.cpu(), sums, rtol=1e-5)
    # Of equal scores the first class wins.
    labels, sums = fused_winners(
        upscore(3, 8, 3.5, True), torch.zeros(1, 3, 1, 1, device=device), 0, 0, 8, 8
    )
    assert not labels.any()
    assert sums.item() == pytest.approx(64 / 3)


def in_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_labels_and_sums_are_those_of_the_scores() -> None:
    """In Triton's interpreter, which is chosen before the kernel is imported."""
    code = "from tests.fcn.test_fused import check; check('cpu')"
    outcome = in_process(code, TRITON_INTERPRET="1")
    assert outcome.returncode == 0, outcome.stderr


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fcn.fused import BLOCK_PIXELS, _kernel

for score, label in [("*bf16", "*u8"), ("*fp16", "*u8"), ("*fp32", "*u16")]:
    types = dict.fromkeys(_kernel.arg_names, "i32")
    types |= {"score": score, "label": label, "partial": "*fp32", "centre": "fp32"}
    types["BLOCK"] = "constexpr"
    source = ASTSource(_kernel, types, {"BLOCK": BLOCK_PIXELS})
    options = {"enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert len(made.asm["cubin"]) > 1000
"""


def test_the_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    """Compute capability 9.0; the compiler needs no GPU."""
    outcome = in_process(COMPILE, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.gpu
def test_labels_and_sums_on_a_gpu_are_those_of_the_scores() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    check("cuda")
