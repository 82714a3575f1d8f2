"""CUDA graphs for the sizes that recur, and for no others.

A graph is a network's hundred launches, recorded once for one size and replayed by one call, so
that a GPU does not wait for Python, nor for the interpreter lock that decoding threads hold.
Recording costs about what a batch does without one, and a graph keeps its maps in memory: a
collection of ten thousand sizes must not record ten thousand graphs.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

FIRST_MADE = 4
"""How often a key comes before something is made for it; a power of two."""

NUM_KEPT = 8
"""Graphs in memory at once."""

MAX_COUNTED = 4096
"""Keys whose visits are counted at once."""

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


class Recurring(Generic[Key, Made]):
    """Makes something for a key that comes again and again, and keeps the last used few.

    Made at the 4th, 8th, 16th, … visit that finds nothing: a key that comes n times costs at
    most log2(n) makings, even where more keys take turns than are kept.

    Args:
        make: Makes what belongs to a key; None where it cannot.
        num_kept: How many are kept.
    """

    def __init__(self, make: Callable[[Key], Made | None], num_kept: int = NUM_KEPT) -> None:
        self._make = make
        self._num_kept = num_kept
        self._kept: OrderedDict[Key, Made] = OrderedDict()
        self._visits: OrderedDict[Key, int] = OrderedDict()

    def find(self, key: Key) -> Made | None:
        """What was made for a key, or is now; None for one that has come too seldom."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        visits = self._visits.pop(key, 0) + 1
        self._visits[key] = visits
        if len(self._visits) > MAX_COUNTED:
            self._visits.popitem(last=False)
        power_of_two = visits & (visits - 1) == 0
        if visits < FIRST_MADE or not power_of_two:
            return None
        made = self._make(key)
        if made is not None:
            self._kept[key] = made
            if len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
        return made


class Graph:
    """A function of one tensor, recorded on a GPU and replayed.

    Call it on the stream that it was recorded on. The function must have run on that stream
    with this shape before, so that its kernels are compiled and its libraries set up.

    Args:
        function: Maps a tensor on the GPU to tensors there, without waiting for the GPU.
        shape: Of its argument.
        stream: Where it is recorded.
        pool: Memory that it shares with other graphs of the same stream
            (`torch.cuda.graph_pool_handle`). They never run at once, and what outlives a run is
            copied out of it.
        dtype: Of its argument.

    Raises:
        torch.OutOfMemoryError: no room for its maps.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Sequence[Tensor]],
        shape: Sequence[int],
        stream: torch.cuda.Stream,
        pool: Any,
        dtype: torch.dtype = torch.uint8,
    ) -> None:
        self._argument = torch.zeros(*shape, dtype=dtype, device=stream.device)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may allocate or wait meanwhile: only this one must not.
        with torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local"):
            self._results = function(self._argument)

    def __call__(self, argument: Tensor) -> list[Tensor]:
        """What the function gives, in tensors of their own."""
        self._argument.copy_(argument)
        self._graph.replay()
        return [result.clone() for result in self._results]
