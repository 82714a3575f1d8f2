"""Memory by budget: what is taken together stays within it, and no two wait for each other.

Shards in work share two budgets of a process, one for files as read and one for pixels.
Each shard takes from the first what a window needs, and while it has the window, from the
second what a batch needs; whoever has a batch waits for nothing. A shard waits only when it
holds nothing else of the same budget that needs its own progress to be given back. So
somebody always goes on.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import numpy as np

from fcn.bands import Band, stacked_dtype
from fcn.decoders import FILE_COPIES, MAX_BYTES_PER_PIXEL

PIXEL_BYTES = 3
"""A decoded pixel."""

LABEL_BYTES = 5
"""A pixel's label (two bytes above 256 classes), and its mask while it is packed."""

MAX_IMAGE_BYTES = MAX_BYTES_PER_PIXEL + PIXEL_BYTES + LABEL_BYTES
"""All that a pixel may take while its image is in work, in the hungriest format."""

_KNOWN_BYTES = 5
"""A pixel of a band while what is not known in it is filled in: a float and whether it is known."""

Item = TypeVar("Item")
Job = TypeVar("Job")


def band_pixel_bytes(bands: Sequence[Band]) -> int:
    """What a pixel of an image takes besides: its bands, and all of it once more, stacked."""
    if not bands:
        return 0
    stacked = np.dtype(stacked_dtype(bands)).itemsize * (3 + len(bands))
    return stacked + sum(np.dtype(band.dtype).itemsize for band in bands)


def most_pixel_bytes(bands: Sequence[Band] = (), num_heads: int = 1) -> int:
    """All that a pixel may take while its image is in work alone, in the hungriest format.

    Decoders have ended when the bands are stacked and the network gives a label map for each
    head, so that what is larger of the two counts.
    """
    decoded = sum(np.dtype(band.dtype).itemsize for band in bands)
    stacked = band_pixel_bytes(bands) - decoded + (_KNOWN_BYTES if bands else 0)
    further = LABEL_BYTES * (num_heads - 1)
    return MAX_IMAGE_BYTES + decoded + max(0, stacked + further - MAX_BYTES_PER_PIXEL)


class Budget:
    """Bytes that may be in memory at once.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.waiting: deque[object] = deque()
        self.changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one shard takes; at the end of the block all of it is given back."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give(share.held)


class Share:
    """What one shard has taken of a budget; for use from many threads."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.held = 0

    def take(self, size: int) -> None:
        """Wait for so many bytes; those who asked before get theirs before."""
        budget, ticket = self.budget, object()
        assert size <= budget.size, f"{size:,} bytes of a budget of {budget.size:,}"
        with budget.changed:
            budget.waiting.append(ticket)
            budget.changed.wait_for(lambda: budget.waiting[0] is ticket and self._fits(size))
            budget.waiting.popleft()
            self._add(size)

    def try_take(self, size: int) -> bool:
        """Take so many bytes, unless they are not there or somebody waits for some."""
        with self.budget.changed:
            free = not self.budget.waiting and self._fits(size)
            if free:
                self._add(size)
            return free

    def give(self, size: int) -> None:
        """Give bytes back; none after the end of the block that the share was made for."""
        with self.budget.changed:
            self._add(-min(size, self.held))

    def _fits(self, size: int) -> bool:
        return self.budget.taken + size <= self.budget.size

    def _add(self, size: int) -> None:
        self.held += size
        self.budget.taken += size
        self.budget.changed.notify_all()


def prefetched(
    items: Sequence[Item], cost: Callable[[Item], int], share: Share, start: Callable[[Item], Job]
) -> Iterator[tuple[Item, Job]]:
    """Each item with its job, the next one begun meanwhile where there is room for both.

    Args:
        items: What to do, in order.
        cost: Bytes that an item takes. The caller gives them back, before it asks for the
            next item, or in a thread that does not wait for it.
        share: What they are taken from.
        start: Begins the job of an item.
    """
    begun: deque[tuple[Item, Job]] = deque()
    for index, item in enumerate(items):
        if not begun:
            share.take(cost(item))
            begun.append((item, start(item)))
        for following in items[index + 1 : index + 2]:
            if share.try_take(cost(following)):
                begun.append((following, start(following)))
        yield begun.popleft()


@cache
def budgets(
    memory_budget: int,
    max_image_pixels: int,
    max_image_bytes: int,
    bands: tuple[Band, ...] = (),
    num_heads: int = 1,
) -> tuple[Budget, Budget]:
    """The budgets for files and for pixels of a run in this process, the same for all its shards.

    A quarter is for files, unless the largest file needs more or the largest image leaves less.
    """
    spare = memory_budget - _largest_image(max_image_pixels, max_image_bytes, bands, num_heads)
    files = max(max_image_bytes, min(memory_budget // 4, spare))
    return Budget(files), Budget(memory_budget - files)


def least_budget(
    max_image_pixels: int, max_image_bytes: int, bands: Sequence[Band] = (), num_heads: int = 1
) -> int:
    """The smallest memory budget that holds the largest image allowed, whatever its format."""
    return _largest_image(max_image_pixels, max_image_bytes, bands, num_heads) + max_image_bytes


def _largest_image(
    max_image_pixels: int, max_image_bytes: int, bands: Sequence[Band], num_heads: int
) -> int:
    return most_pixel_bytes(bands, num_heads) * max_image_pixels + FILE_COPIES * max_image_bytes
