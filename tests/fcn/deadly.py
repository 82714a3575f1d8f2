"""Decoders that really die: a start-up file for the processes that decode.

Python runs `sitecustomize` before anything else, so in a decoding process a QOI image meets
the decoder below in place of Pillow's, registered in Pillow's own way. Its width says what
it does; other sizes, and all other formats, are decoded as ever.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DEATHS = ("segfault", "abort", "exit", "spin", "sleep", "swell", "header")

_SITE = """
import ctypes, os, time
from PIL import Image, QoiImagePlugin

def spin():
    while True:
        pass

def swell():
    memory = []
    while True:
        memory.append(bytearray(32 << 20))

DEATHS = {
    1: lambda: ctypes.string_at(0),
    2: os.abort,
    3: lambda: os._exit(7),
    4: spin,
    5: lambda: time.sleep(1000),
    6: swell,
}

class Deadly(QoiImagePlugin.QoiImageFile):
    def _open(self):
        super()._open()
        if self.size[0] == 7:
            os.abort()

    def load(self):
        DEATHS.get(self.size[0], lambda: None)()
        return super().load()

Image.register_open("QOI", Deadly, lambda start: start[:4] == b"qoif")
"""


def deadly(death: str) -> bytes:
    """An image that kills its decoder in one of the ways of `DEATHS`."""
    return qoi(width=1 + DEATHS.index(death))


def qoi(width: int) -> bytes:
    """A QOI image, valid by itself."""
    file = io.BytesIO()
    Image.fromarray(np.full((3, width, 3), 200, np.uint8)).save(file, "QOI")
    return file.getvalue()


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the decoding processes that start from now on their deadly decoder."""
    (directory / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(directory))
