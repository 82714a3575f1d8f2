"""What a measurement ran on."""

import os
import platform
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "prefect", "pyarrow", "fsspec", "pillow", "simplejpeg")


def describe() -> str:
    """Processor, cores, memory and versions, in two lines."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{_processor()}, {os.cpu_count()} cores, {pages * size / 2**30:.0f} GiB, no GPU.\n"
        f"Python {platform.python_version()}, {versions}."
    )


def command(name: str) -> str:
    """The line of a page that tells how it was made, wherever it was written to."""
    given = iter(sys.argv[1:])
    words = [word for word in given if word not in ("--page", "--figure") or not next(given)]
    return f"Command: `{shlex.join(['python', '-m', f'benchmarks.{name}', *words])}`"


def children(text: str) -> Iterator[Path]:
    """Processes that this one started, have this text in their command, and are alive: in /proc."""
    for task in Path("/proc/self/task").glob("*/children"):
        for child in _text(task).split():
            process = Path("/proc") / child
            if text in _text(process / "cmdline"):
                yield process


def _text(file: Path) -> str:
    """Content of a file of a thread or a process, none when that has ended."""
    try:
        return file.read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def decoding_processes() -> Iterator[Path]:
    """Those of this process (`fcn.decoders`)."""
    return children("fcn.decoding")


def seconds_of_process(process: Path) -> float:
    """Processor time of a process until now."""
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def processor_seconds() -> float:
    """Processor time of this process and of its decoding processes until now."""
    times = os.times()
    return times.user + times.system + sum(map(seconds_of_process, decoding_processes()))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
