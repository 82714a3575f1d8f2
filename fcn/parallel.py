"""Several processes that train one network: what they tell each other, as tensors.

Each process, a rank, takes its share of every batch. What they exchange makes the step of one
process alone: the sum of their gradients, the statistics of normalisations over all of a batch.
Who starts the processes, and ends all of them when one fails, is none of this module's business.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from fcn.augment import pad

MAX_BUCKET_BYTES = 64 << 20
"""Gradients that are summed in one call: large enough for a bus, small beside the network."""

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them.

    More than one talk through PyTorch's default process group, which must stand. With one
    alone nothing is exchanged.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that fall to this rank: every one falls to exactly one."""
        return items[self.rank :: self.size]

    def gather(self, numbers: Tensor) -> Tensor:
        """Equally shaped CPU tensors of all ranks, stacked by rank: ``size x …``."""
        found = numbers.new_zeros(self.size, *numbers.shape)
        found[self.rank] = numbers
        if self.size > 1:
            distributed.all_reduce(found)
        return found

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, the same bits on all of them.

        The calls cut the tensors up the same way in every step. (`DistributedDataParallel`
        cuts the second step anew, so that a resumed training would round otherwise.)
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, as many together as `MAX_BUCKET_BYTES` hold; one at least."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > MAX_BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def normalises_batches(net: nn.Module) -> bool:
    """Whether a network has batch normalisation, whose statistics run over a whole batch."""
    return any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def share_statistics(net: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch normalisations that take their statistics over all ranks.

    PyTorch's `SyncBatchNorm` works on GPUs only; on a CPU `SharedBatchNorm` does the same.
    Parameters, statistics and their names stay.
    """
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        return synchronised
    for parent in list(net.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.BatchNorm2d:
                setattr(parent, name, SharedBatchNorm.of(module))
    return net


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the batches of all ranks, on any device.

    Mean and variance are of all pixels of all ranks, each counted once, however unevenly they
    are dealt out; a rank may have none. In evaluation it is batch normalisation as ever.
    """

    @classmethod
    def of(cls, other: nn.BatchNorm2d) -> "SharedBatchNorm":
        """One with the parameters, statistics and settings of ``other``."""
        shared = cls(0)
        shared.__dict__.update(other.__dict__)
        return shared

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        """``N x C x H x W``, normalised over N, H and W of all ranks."""
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        num_values = _sum(values.new_tensor([input.numel() // input.shape[1]], dtype=torch.float64))
        count = float(num_values)
        if count < 2:
            raise ValueError(f"a batch has {count:.0f} values a channel; normalising takes two")
        mean = _sum(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = _sum(centred.square().sum(dim=(0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the ranks, which gradients flow back through."""
    total: Tensor = _Sum.apply(tensor)
    return total


class _Sum(torch.autograd.Function):
    """A sum over the ranks; the gradient of one summand is the sum of the gradients."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def pad_to(
    images: Tensor, labels: Tensor, size: tuple[int, int], ignored: int
) -> tuple[Tensor, Tensor]:
    """A batch padded at the right and below, to the size of another rank's; labels ignored.

    Args:
        images: ``N x 3 x H x W``, or with bands behind the colours (`fcn.augment.pad`).
        labels: ``N x H x W``, of K heads ``N x K x H x W``.
        size: Height and width, no less than H and W.
        ignored: Label of the pixels that are added.
    """
    padding = (0, size[1] - images.shape[-1], 0, size[0] - images.shape[-2])
    return pad(images, padding), functional.pad(labels, padding, value=ignored)
