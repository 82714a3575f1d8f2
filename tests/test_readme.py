"""What the README tells people to type, typed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fcn.__main__
import flows.command_line
from tasks.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERB_COMMANDS = re.findall(r"^\$ python -m flows (.+)$", README, re.MULTILINE)
FCN_COMMANDS = re.findall(r"^\$ python -m fcn (.+)$", README, re.MULTILINE)
SHORT = {  # appended: the later of two equal options counts
    "train": ["--config.epochs", "1", "--config.crop-size", "64,64", "--config.num-workers", "0"],
    "train_staged": [
        *("--config.epochs", "1", "--config.crop-size", "64,64", "--config.num-workers", "0"),
    ],
    "quantise": ["--config.max-loss", "100"],  # a network of one epoch may lose anything
    "pipeline": [
        *("--train-config.epochs", "1", "--train-config.crop-size", "64,64"),
        *("--train-config.num-workers", "0"),
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, prefect_server):
    """A folder as the README assumes it, after its commands."""
    place = tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_scenes(".", num_train=4, num_val=2, num_unlabelled=12)
        photo = next(path for path in Path("unlabelled").rglob("*.jpg") if "dam" not in path.name)
        Path("photo.jpg").write_bytes(photo.read_bytes())
        for command in VERB_COMMANDS:
            verb, *options = shlex.split(command)
            assert flows.command_line.main([verb, *options, *SHORT.get(verb, [])]) == 0
        for command in FCN_COMMANDS:
            assert fcn.__main__.main(shlex.split(command)) == 0
    return place


def test_the_verbs_are_shown_in_order():
    shown = tuple(command.partition(" ")[0] for command in VERB_COMMANDS)
    assert shown == flows.command_line.VERBS


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("dataset/dataset.json", "run/model.safetensors", "run/metrics.jsonl"),
        *("run/report.html", "report/report.html"),
        *("prediction/_index.json", "prediction/parts/run=00000/part-00000.parquet"),
    ],
)
def test_the_commands_write_what_the_table_says(place, name):
    assert (place / "work" / name).is_file()
    assert (place / "all" / name).is_file()


def test_local_images_without_prefect(place):
    assert len(FCN_COMMANDS) == 2
    written = sorted(path.name for path in (place / "segmented").iterdir())
    assert written == ["photo-overlay.jpg", "photo.png"]
    assert (place / "net.onnx").is_file()


def test_the_python_blocks_run_one_after_the_other(place):
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=place,
        env=os.environ | {"HF_HOME": str(place / "huggingface"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "mean IU 1.000, pixel accuracy 1.000" in run.stdout
    assert "\n12\n" in run.stdout
    assert "PngImageFile image mode=P" in run.stdout


def test_every_make_target_named_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z0-9-]+)", README)) | set(
        re.findall(r"^\$ make ([a-z0-9-]+)", README, re.MULTILINE)
    )
    assert {"demo", "test", "ui", "install"} <= named
    assert [target for target in named if f"\n{target}: " not in makefile] == []
