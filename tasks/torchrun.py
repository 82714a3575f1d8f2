"""A training over several processes of this machine: torchrun started, heard and ended.

One child, torchrun, has the ranks as its children. Each rank connects to a socket of this
process, gets its job and the state to begin with, and tells what it does. So nothing is pickled,
no file is left behind, and this process knows from each line's end that its rank has ended.
"""

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fcn.cores import num_cores
from fcn.errors import DeviceError
from fcn.recipes import TrainConfig
from tasks.dataset import DatasetInfo
from tasks.runs import Run
from tasks.training import Advance, Log

PATIENCE = 15
"""Seconds that what the ranks started may outlive them: their loaders look every 5 s."""


class RankError(Exception):
    """A process of a training that ended without an error that this project knows."""


def num_processes(config: TrainConfig) -> int:
    """How many processes train: what the settings say, or one for each GPU and one on a CPU.

    Raises:
        DeviceError: More processes than this machine has GPUs.
    """
    if config.device == "cpu" or config.device.startswith("cuda:"):
        return config.num_processes or 1
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = config.num_processes or max(1, min(num_gpus, config.batch_size))
    if num_gpus and count > num_gpus:
        raise DeviceError(
            f"{count} training processes need a GPU each, and this machine has {num_gpus}; give "
            f"num_processes={num_gpus} or less"
        )
    return count


def train_over_ranks(
    info: DatasetInfo,
    run: Run,
    config: TrainConfig,
    state: bytes,
    *,
    count: int,
    logger: Log,
    advance: Advance,
) -> None:
    """Train to the end in ``count`` processes, which end with this call and with this process.

    Args:
        info: The dataset.
        run: The place of the run.
        config: The settings.
        state: Of the training, to go on from.
        count: How many processes.
        logger: Hears the first rank's log, the warnings of the others, and all that they print.
        advance: Hears every step of the first rank.

    Raises:
        RankError: A process ended by itself, or for a reason that is a fault of the program.
        Exception: What a rank raised, as it would have been raised here.
    """
    job = {
        "dataset_url": info.url,
        "dataset": info.to_json(),
        "run_url": run.url,
        "config": config.model_dump(mode="json"),
        "state_bytes": len(state),
    }
    with TemporaryDirectory(prefix="fcn-flows-") as folder, socket.socket(socket.AF_UNIX) as door:
        address = str(Path(folder) / "training")
        door.bind(address)
        door.listen()
        order = [json.dumps(job).encode() + b"\n", state]
        del state  # up to gigabytes, which the last rank's start sets free
        with _Ranks(_start(address, count), count, door, order, logger, advance) as ranks:
            ranks.follow()
        ranks.raise_error()


def _start(address: str, count: int) -> "subprocess.Popen[bytes]":
    root = str(Path(__file__).resolve().parents[1])
    threads = max(1, num_cores() // count)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo",  # by itself it looks for this machine's name in the network
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "tasks.launcher", str(os.getpid()), address, str(count)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )


class _Ranks:
    """The child, its ranks, and what they told; all of them have ended when the context has."""

    def __init__(
        self,
        child: "subprocess.Popen[bytes]",
        count: int,
        door: socket.socket,
        order: list[bytes],
        logger: Log,
        advance: Advance,
    ) -> None:
        self._child, self._door, self._order = child, door, order
        self._to_come = count
        self._logger, self._advance = logger, advance
        self._errors: list[dict[str, Any]] = []
        self._ended: dict[str, int] = {}
        self._output: deque[str] = deque(maxlen=20)
        self._lines = selectors.DefaultSelector()
        self._lines.register(door, selectors.EVENT_READ, self._accept)
        assert child.stdout is not None
        self._listen(child.stdout, self._printed)

    def __enter__(self) -> "_Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()  # the kernel ends the ranks with it; after a good end this is nothing
        self._child.wait()
        self._hear_out()
        for key in list(self._lines.get_map().values()):
            if key.fileobj is not self._door:
                key.fileobj.close()  # type: ignore[union-attr]
        self._lines.close()

    def follow(self) -> None:
        """Hear everything until torchrun has ended."""
        while self._child.poll() is None:
            self._hear()
        self._hear_out()

    def raise_error(self) -> None:
        """Raise what the ranks died of, if they did."""
        if self._child.returncode == 0:
            return
        for error in self._errors:  # the first in time; what followed from it comes later
            if known := _known_error(*error["error"]):
                raise known
        for rank, status in self._ended.items():
            if status < 0 and -status != signal.SIGTERM:  # which is what torchrun ends ranks with
                raise RankError(
                    f"training process {rank} was ended by {signal.Signals(-status).name}; "
                    "SIGKILL often says that the machine ran out of memory. The run is kept: run "
                    "again to go on"
                )
        if self._errors:
            first = self._errors[0]
            raise RankError(f"training process {first['rank']} failed:\n{first['traceback']}")
        raise RankError(
            f"torchrun ended with status {self._child.returncode}:\n" + "\n".join(self._output)
        )

    def _hear(self) -> None:
        for key, _ in self._lines.select(timeout=0.2):
            key.data()

    def _hear_out(self) -> None:
        """Hear what is left until all lines have ended, and with them who held them."""
        end = time.monotonic() + PATIENCE
        while len(self._lines.get_map()) > 1 and time.monotonic() < end:
            self._hear()

    def _accept(self) -> None:
        line, _ = self._door.accept()
        source = {"rank": None}

        def told(text: str) -> None:
            message = json.loads(text)
            if "rank" in message:
                source.update(message)
                self._give_order(line)
            self._told({**source, **message})

        self._listen(line, told)

    def _give_order(self, line: socket.socket) -> None:
        for part in self._order:
            with contextlib.suppress(OSError):  # it has died: torchrun tells
                line.sendall(part)
        self._to_come -= 1
        if not self._to_come:
            self._order.clear()

    def _listen(self, source: Any, hear: Callable[[str], None]) -> None:
        """Give every line that comes from a pipe or a socket to ``hear``."""
        rest = b""

        def read() -> None:
            nonlocal rest
            try:
                data = os.read(source.fileno(), 1 << 16)
            except ConnectionError:
                data = b""
            *lines, rest = (rest + data).split(b"\n")
            for text in lines:
                hear(text.decode("utf-8", "replace"))
            if not data:
                self._lines.unregister(source)
                source.close()

        self._lines.register(source, selectors.EVENT_READ, read)

    def _told(self, message: dict[str, Any]) -> None:
        if "log" in message:
            level, text = message["log"]
            prefix = f"process {message['rank']}: " if message["rank"] else ""
            self._logger.log(level, "%s%s", prefix, text)
        if "progress" in message:
            self._advance(*message["progress"])
        if "error" in message:
            self._errors.append(message)
        if "ended" in message:
            self._ended = message["ended"]

    def _printed(self, text: str) -> None:
        self._output.append(text)
        self._logger.info("%s", text)


def _known_error(module: str, name: str, text: str) -> Exception | None:
    """An error of this project, made anew; None if it is no such error."""
    if module.partition(".")[0] not in ("fcn", "tasks"):
        return None
    kind = getattr(importlib.import_module(module), name, None)
    return kind(text) if isinstance(kind, type) and issubclass(kind, Exception) else None
