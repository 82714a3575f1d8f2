"""Which samples each step of a training takes: a matter of seed and position alone."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fcn.parallel import World
from fcn.samples import ORDER, mix


@dataclass(frozen=True, kw_only=True)
class Order:
    """Epoch after epoch without a seam, each in an order of its own.

    Attributes:
        num_samples: Samples of the training.
        epochs: Passes over them.
        batch_size: Samples of a batch.
        accumulate: Batches of a step, fewer at the very end.
        seed: Of the training.
    """

    num_samples: int
    epochs: int
    batch_size: int
    accumulate: int
    seed: int

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return -(-self.epochs * self.num_samples // self._per_step)

    def num_seen(self, step: int) -> int:
        """Samples that so many steps took, each counted once an epoch."""
        return min(step * self._per_step, self.epochs * self.num_samples)

    def batch_sizes(self, step: int) -> list[int]:
        """How many images the batches of the step after ``step`` steps have, over all ranks."""
        rest = min(self.epochs * self.num_samples - self.num_seen(step), self._per_step)
        return [min(self.batch_size, rest - start) for start in range(0, rest, self.batch_size)]

    def batches(self, step: int, world: World) -> Iterator[list[tuple[int, int]]]:
        """(epoch, sample) of a rank's share of each batch after ``step`` steps, if it has one."""
        stream = itertools.islice(self._stream(), self.num_seen(step), None)
        while batch := list(itertools.islice(stream, self.batch_size)):
            if share := world.share(batch):
                yield list(share)

    @property
    def _per_step(self) -> int:
        return self.batch_size * self.accumulate

    def _stream(self) -> Iterator[tuple[int, int]]:
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(mix(ORDER, self.seed, epoch))
            order = torch.randperm(self.num_samples, generator=generator).tolist()
            yield from ((epoch, sample) for sample in order)
