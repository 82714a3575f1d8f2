"""A start imports no compiler, unless something asks for it, and makes no random weights."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import fcn
from fcn.light import Uninitialised
from tests.fcn.models import varied_model

START = """
import pathlib, sys, time
import numpy as np
import fcn
import fcn.__main__
assert "torch" not in sys.modules

class File:
    def read(self):
        assert "torchvision" not in sys.modules, "read after the imports"
        end = time.monotonic() + 60
        while "torch" not in sys.modules:
            assert time.monotonic() < end, "no import while the file is read"
            time.sleep(0.001)
        return pathlib.Path(sys.argv[1]).read_bytes()

for file in (File(), *sys.argv[2:]):
    model = fcn.load(file)
    fcn.Predictor(model, device="cpu").predict([np.zeros((40, 50, 3), np.uint8)])
    assert "torch._dynamo" not in sys.modules, model.net.backbone
"""

STAND_IN = """
import sys
import fcn.trunks
assert "torch._dynamo" not in sys.modules
import torchvision.ops
roi_align = sys.modules["torchvision.ops.roi_align"]
assert roi_align.is_compile_supported("cpu") in (True, False)
import torch
import torch._dynamo.utils
assert torch._dynamo.utils.__file__
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
"""

ASKED = """
import sys
from fcn.light import without_compiler
with without_compiler():
    import torch.compiler
    assert "torch._dynamo.eval_frame" not in sys.modules
    assert torch.compiler.disable(abs)(-2) == 2
assert "torch._dynamo.eval_frame" in sys.modules
"""


BESIDE = """
import importlib, sys, threading
from fcn.light import without_compiler
before, found = list(sys.meta_path), []
with without_compiler():
    ask = lambda: found.append(importlib.import_module("torch._dynamo.config"))
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
import torch._dynamo.config
assert found == [torch._dynamo.config] == [sys.modules["torch._dynamo.config"]]
assert found[0].__spec__.loader.name == "torch._dynamo.config"
assert sys.meta_path == before
"""


def test_another_thread_that_asks_for_a_part_of_the_compiler_meanwhile_gets_it() -> None:
    subprocess.run([sys.executable, "-c", BESIDE], check=True, timeout=200)


def test_a_module_that_uses_the_compiler_while_it_is_imported_gets_it() -> None:
    subprocess.run([sys.executable, "-c", ASKED], check=True, timeout=200)


def test_torchvision_comes_without_the_compiler_which_comes_when_it_is_used() -> None:
    subprocess.run([sys.executable, "-c", STAND_IN], check=True, timeout=200)


def test_from_a_model_file_to_labels_no_compiler_is_imported(tmp_path: Path) -> None:
    """And PyTorch while the first file is read."""
    backbones = ["squeezenet1_1", "mobilenet_v3_small"]
    for backbone in backbones:
        fcn.save(varied_model(backbone, 3, 16), tmp_path / backbone)
    code = [sys.executable, "-c", START, *(tmp_path / backbone for backbone in backbones)]
    subprocess.run(code, check=True, timeout=200)


def test_weights_stay_as_they_are_where_they_are_not_initialised() -> None:
    layer, before = nn.Conv2d(3, 2, 1), torch.get_rng_state()
    weight = layer.weight.clone()
    with Uninitialised():
        nn.init.normal_(layer.weight)
        layer.reset_parameters()
        assert torch.equal(torch.zeros(2) + 1, torch.ones(2))
    assert torch.equal(layer.weight, weight)
    assert torch.equal(torch.get_rng_state(), before)
    nn.init.normal_(layer.weight)
    assert not torch.equal(layer.weight, weight)
