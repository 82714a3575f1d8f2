"""Trains in one child after another, each killed at a random moment, until one is done.

``python -m tests.fcn.killed CONFIG FOLDER`` leaves the last state in FOLDER/state and prints
how many children it killed. Children are forks, so that PyTorch is imported once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from fcn.recipes import TrainConfig
from tasks import durable
from tests.fcn.scenes import squares
from tests.fcn.test_train import trainer


def train(config: TrainConfig, path: Path) -> None:
    """Train from the state at ``path``, if any, and leave one after every step."""
    state = path.read_bytes() if path.exists() else None
    training = trainer(config, squares(10), state)
    for _ in training.run():
        with Path(path.parent / "new").open("w+b") as file:
            file.write(training.state())
            file.seek(0)
            durable.replace(path, file)


def main() -> None:
    torch.set_num_threads(1)
    config, path = TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]) / "state"
    chance, patience, kills = random.Random(0), 0.05, 0
    while True:
        before = path.read_bytes() if path.exists() else b""
        child = os.fork()
        if not child:
            train(config, path)
            os._exit(0)
        time.sleep(chance.uniform(0, patience))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        kills += 1
        if before == (path.read_bytes() if path.exists() else b""):
            patience *= 1.5  # a busy machine: give the next one time for a step
    print(kills)


if __name__ == "__main__":
    main()
