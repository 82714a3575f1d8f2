"""How long the stages of a shard were at work, and how long each of its images took."""

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

Stage = Literal["read", "decode", "network", "encode", "write"]


class Seconds:
    """Busy time by stage, summed over threads; stages overlap, so the sum exceeds the clock.

    Of the network it is that of all cores: a second of one core counts as much as its share.
    ``by_image`` tells, by key, how much of decoding and of the network was an image's own.
    """

    def __init__(self) -> None:
        self.by_stage: dict[Stage, float] = dict.fromkeys(
            ("read", "decode", "network", "encode", "write"), 0.0
        )
        self.by_image: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def measure(
        self, stage: Stage, keys: Collection[str] = (), *, cores: float = 1.0
    ) -> Iterator[None]:
        """Add the time of a ``with`` block to a stage, and to images an equal share each.

        Args:
            stage: What is done.
            keys: Of the images that it is done for.
            cores: The share of the machine that does it.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                self.by_stage[stage] += cores * seconds
                for key in keys:
                    self.by_image[key] = self.by_image.get(key, 0.0) + seconds / len(keys)
