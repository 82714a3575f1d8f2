"""Trains in one set of processes after another, each killed at a random moment, until one is done.

``python -m tests.fcn.killed CONFIG FOLDER SIZE`` leaves the last state of SIZE ranks in
FOLDER/state and prints how many sets it killed. They are forks, so that PyTorch is imported once.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from fcn.parallel import World
from fcn.recipes import TrainConfig
from tasks import durable
from tests.fcn.scenes import squares
from tests.fcn.trainers import trainer


def train(config: TrainConfig, path: Path, world: World, meeting: Path) -> None:
    """Train from the state at ``path``, if any, and leave one after every step."""
    if world.size > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=world.rank, world_size=world.size
        )
    state = path.read_bytes() if path.exists() else None
    training = trainer(config, squares(10), state, world=world)
    for _ in training.run():
        if world.rank == 0:
            with Path(path.parent / "new").open("w+b") as file:
                file.write(training.state())
                file.seek(0)
                durable.replace(path, file)


def start(config: TrainConfig, path: Path, world: World, meeting: Path) -> int:
    """Process id of a rank."""
    child = os.fork()
    if not child:
        train(config, path, world, meeting)
        os._exit(0)
    return child


def main() -> None:
    torch.set_num_threads(1)
    config, path = TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]) / "state"
    size = int(sys.argv[3])
    chance, patience, kills = random.Random(0), 0.05, 0
    while True:
        before = path.read_bytes() if path.exists() else b""
        meeting = path.with_name(f"meeting-{kills}")
        children = [start(config, path, World(rank, size), meeting) for rank in range(size)]
        time.sleep(chance.uniform(0, patience))
        for child in children:
            os.kill(child, signal.SIGKILL)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if ends[0] == 0:
            break
        kills += 1
        if before == (path.read_bytes() if path.exists() else b""):
            patience *= 1.5  # a busy machine: give the next ones time for a step
    print(kills)


if __name__ == "__main__":
    main()
