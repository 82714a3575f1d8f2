"""Training over real processes that torchrun starts: what it raises, and what it leaves running."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fcn.errors import DeviceError, TrainingError
from fcn.recipes import TrainConfig
from tasks.runs import claim
from tasks.torchrun import PATIENCE, RankError, num_processes, train_over_ranks
from tasks.training import make_trainer
from tests.tasks.labelled import make_dataset

_SCRIPT = """
import logging, signal, sys
from pathlib import Path
from fcn.recipes import TrainConfig
from tasks.dataset import read_info
from tasks.runs import claim
from tasks.torchrun import train_over_ranks

signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
config = TrainConfig.model_validate_json(sys.argv[3])
info = read_info(sys.argv[1])
run = claim(sys.argv[2], info, config)
state = Path(sys.argv[4]).read_bytes()
train_over_ranks(
    info, run, config, state, count=2, logger=logging.getLogger(),
    advance=lambda count, _: print(count, flush=True),
)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "backbone": "squeezenet1_1", "init": "none", "epochs": 2, "batch_size": 4,
        "crop_size": (32, 32), "num_workers": 0,
    }  # fmt: skip
    return TrainConfig(**(defaults | changes))


def descendants(pid: int) -> set[int]:
    """Processes below one, at any depth."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has just ended
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, new = set[int](), [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found |= set(new)
    return found


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"  # who adopts it may reap it late


def start(tmp_path: Path, config: TrainConfig) -> "subprocess.Popen[bytes]":
    """A process that trains over two ranks, and has taken its first step."""
    info = make_dataset(str(tmp_path / "set"))
    state = tmp_path / "state"
    state.write_bytes(make_trainer(info, config, None).state())
    arguments = [info.url, str(tmp_path / "run"), config.model_dump_json(), str(state)]
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    assert process.stdout.readline() == b"4\n"
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_trains(tmp_path: Path, number: signal.Signals) -> None:
    """torchrun, two ranks, and the processes that decode for each."""
    process = start(tmp_path, settings(epochs=2000, num_workers=1))
    family = descendants(process.pid)
    try:
        assert len(family) >= 5
        for pid in family:  # as in native code that hears nothing and looks at nothing
            if command(pid)[1:3] in (["-m", "tasks.launcher"], ["-m", "tasks.training_rank"]):
                os.kill(pid, signal.SIGSTOP)
        process.send_signal(number)
        assert process.wait(PATIENCE + 15) == (143 if number == signal.SIGTERM else -number)
        end = time.monotonic() + (0 if number == signal.SIGTERM else PATIENCE)
        while (left := [pid for pid in family if is_running(pid)]) and time.monotonic() < end:
            time.sleep(0.1)
        assert left == []
    finally:
        for pid in [process.pid, *family]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def test_a_rank_that_is_killed_is_told_and_ends_all(tmp_path: Path) -> None:
    info = make_dataset(str(tmp_path / "set"))
    config = settings(epochs=2000)
    run = claim(str(tmp_path / "run"), info, config)
    before, family = descendants(os.getpid()), set[int]()

    def advance(*_: object) -> None:
        if not family:
            family.update(descendants(os.getpid()) - before)
            ranks = [pid for pid in family if command(pid)[1:3] == ["-m", "tasks.training_rank"]]
            os.kill(next(pid for pid in ranks if b"\0RANK=1\0" in environment(pid)), signal.SIGKILL)

    with pytest.raises(RankError, match=r"training process 1 was ended by SIGKILL; .*memory"):
        train_over_ranks(
            info, run, config, make_trainer(info, config, None).state(), count=2,
            logger=logging.getLogger("ranks"), advance=advance,
        )  # fmt: skip
    for _ in range(100):  # those whose parent died are reaped by init, a little later
        if not any(map(is_running, family)):
            break
        time.sleep(0.1)
    assert not any(map(is_running, family))


def command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("-u\0", "").split("\0")


def environment(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def test_what_a_rank_raises_is_raised_here(tmp_path: Path) -> None:
    info = make_dataset(str(tmp_path / "set"))
    config = settings(learning_rate=1e30, recipe="reference")
    run = claim(str(tmp_path / "run"), info, config)
    state = make_trainer(info, config, None).state()
    with pytest.raises(TrainingError, match=r"^the (loss|gradient) is .* at step \d; .*1e\+30$"):
        train_over_ranks(
            info, run, config, state, count=2,
            logger=logging.getLogger("ranks"), advance=lambda *_: None,
        )  # fmt: skip
    assert run.read_state() is None


@pytest.mark.parametrize(
    ("device", "num_gpus", "asked", "expected"),
    [
        ("auto", 0, None, 1),
        ("auto", 0, 2, 2),
        ("auto", 4, None, 4),
        ("auto", 16, None, 8),  # as many as a batch has images
        ("cuda", 4, 2, 2),
        ("cuda:1", 4, None, 1),
        ("cpu", 4, None, 1),
        ("cpu", 4, 6, 6),
    ],
)
def test_a_process_for_each_gpu_and_one_on_a_cpu(
    device: str, num_gpus: int, asked: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    config = settings(device=device, num_processes=asked, batch_size=8)
    assert num_processes(config) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=r"3 training processes need a GPU each, and .* has 2"):
        num_processes(settings(num_processes=3))
