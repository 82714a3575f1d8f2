"""One rank of a training: what torchrun starts, several times (see `tasks.torchrun`).

It gets its job through a socket, and through it tells its log, its progress and what it died of,
a line of JSON each.
"""

import json
import logging
import os
import socket
import sys
import traceback
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from fcn.parallel import World
from fcn.recipes import TrainConfig
from tasks.dataset import DatasetInfo
from tasks.launcher import LAUNCHER_PID, end_with_parent
from tasks.runs import Run
from tasks.training import Recorder, make_trainer

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others: for the first, while it writes to a slow store."""


class Line:
    """The line to the parent.

    Args:
        address: Of its socket.
        rank: Which one this is.
    """

    def __init__(self, address: str, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self.tell(rank=rank)

    def tell(self, **message: Any) -> None:
        """Send one message."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def read_job(self) -> tuple[dict[str, Any], bytes]:
        """What is to be done, and the state to begin with."""
        with self._socket.makefile("rb") as file:
            job = json.loads(file.readline())
            return job, file.read(job["state_bytes"])


class _ToParent(logging.Handler):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.tell(log=[record.levelno, record.getMessage()])


def train(line: Line, world: World) -> None:
    """Train as one of the ranks, to the end."""
    job, state = line.read_job()
    info = DatasetInfo.from_json(job["dataset_url"], job["dataset"])
    config = TrainConfig.model_validate(job["config"])
    gpu = config.device != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(world.rank)  # what "cuda" is from now on
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
    trainer = make_trainer(info, config, state, world)
    logger = logging.getLogger("tasks.training")
    recorder = Recorder(info, Run(job["run_url"]), trainer, config, logger)
    recorder.record(lambda count, note: line.tell(progress=[count, note]))
    distributed.destroy_process_group()


def main() -> None:
    """Be the rank that torchrun's environment says."""
    end_with_parent(int(os.environ[LAUNCHER_PID]))
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    line = Line(sys.argv[1], world.rank)
    logging.getLogger().addHandler(_ToParent(line))
    for floor in ("fcn", "tasks"):
        logging.getLogger(floor).setLevel(logging.INFO if world.rank == 0 else logging.WARNING)
    try:
        train(line, world)
    except BaseException as error:  # noqa: BLE001 - the parent raises it
        name = [type(error).__module__, type(error).__qualname__]
        line.tell(error=[*name, str(error)], traceback=traceback.format_exc())
        os._exit(1)  # at once: an ordinary exit would wait for the other ranks' answers


if __name__ == "__main__":
    main()
