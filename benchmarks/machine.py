"""What a measurement ran on."""

import os
import platform
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


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
