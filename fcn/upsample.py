"""Bilinear upsampling of score maps, placed to the pixel."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcn.geometry import CoordinateMap


def bilinear_kernel(factor: int, centre: float, size: int) -> Tensor:
    """Bilinear weights ``size x size`` that upsample ``factor`` times around ``centre``.

    With ``size = 2 * factor`` and ``centre = factor - 0.5``, or ``size = 2 * factor - 1`` and
    ``centre = factor - 1``, this is the kernel of the authors' ``surgery.upsample_filt``.
    """
    ramp = 1 - (torch.arange(size, dtype=torch.float64) - centre).abs() / factor
    ramp = ramp.clamp(min=0)
    return torch.outer(ramp, ramp).float()


class Upscore(nn.Module):
    """Upsamples a score map onto a finer grid by a transposed convolution, one kernel a class.

    The kernel starts bilinear. Its size, its centre and the crop follow from the two
    coordinate maps. Fixed, the same sums are computed as two matrix products, one an axis,
    which is several times faster; learnable, they are a grouped transposed convolution.

    Args:
        num_classes: C, the channels of the score map.
        source: Coordinate map of the scores.
        target: Coordinate map of the grid to reach; finer than ``source``.
        replicate_border: Repeat the outermost scores by one cell before upsampling, so that
            they do not fade towards the border of the image.
        learnable: Train the kernels.

    Raises:
        ValueError: ``target`` is not finer than ``source`` by a whole factor.
    """

    def __init__(
        self,
        num_classes: int,
        source: CoordinateMap,
        target: CoordinateMap,
        *,
        replicate_border: bool,
        learnable: bool = False,
    ) -> None:
        super().__init__()
        if source.stride <= target.stride or source.stride % target.stride:
            raise ValueError(f"cannot upsample stride {source.stride} to stride {target.stride}")
        self.factor = source.stride // target.stride
        self.border = int(replicate_border)
        padded = source.shifted(-self.border)
        phase = target.position(padded) % 1
        self.centre = self.factor - 1 + phase
        self.kernel_size = 2 * self.factor - (phase == 0)
        self.map = padded.transposed(self.kernel_size, self.factor, self.centre)
        self.crop = round(self.map.position(target))
        self.weight: nn.Parameter | None = None
        if learnable:
            kernel = bilinear_kernel(self.factor, self.centre, self.kernel_size)
            self.weight = nn.Parameter(kernel.repeat(num_classes, 1, 1, 1))

    def forward(self, score: Tensor) -> Tensor:
        """``N x C x h x w`` to all of ``N x C x (factor * h + …) x (factor * w + …)``."""
        if self.weight is not None:
            score = functional.pad(score, [self.border] * 4, mode="replicate")
            return functional.conv_transpose2d(
                score, self.weight.to(score.dtype), stride=self.factor, groups=score.shape[1]
            )
        height, width = map(self._fine, score.shape[2:])
        return self._product(score, 0, height, width)

    def window(self, score: Tensor, first: int, height: int, width: int) -> Tensor:
        """``self(score)[..., first : first + height, first : first + width]``.

        With fixed kernels nothing else is computed, and the sizes of the result are those asked
        for: formulas of the sizes of ``score``, which capture for export would have to resolve,
        are not in them.

        Args:
            score: ``N x C x h x w``.
            first: The first row and column.
            height: Rows; no more than there are from ``first`` on.
            width: Columns, likewise.
        """
        if self.weight is not None:
            return fit(self(score), first, height, width)
        return self._product(score, first, height, width)

    def _product(self, score: Tensor, first: int, height: int, width: int) -> Tensor:
        """`window` with fixed kernels, as two matrix products."""
        rows = self._matrix(score.shape[2], score, first, height)
        columns = self._matrix(score.shape[3], score, first, width)
        return rows @ (score @ columns.T)

    def strips(
        self, score: Tensor, top: int, left: int, height: int, width: int, num_rows: int
    ) -> Iterator[Tensor]:
        """A window of the upsampled map, ``num_rows`` rows at a time: ``N x C x num_rows x width``.

        All strips together are ``self(score)[..., top : top + height, left : left + width]``, which
        must lie within the map. With fixed kernels a strip is made from the few coarse rows that
        it lies on.
        """
        if self.weight is not None:
            window = self(score)[..., top : top + height, left : left + width]
            yield from torch.split(window, num_rows, dim=2)
            return
        rows = self._matrix(score.shape[2], score, top, height)
        columns = self._matrix(score.shape[3], score, left, width)
        wide = score.permute(2, 0, 1, 3) @ columns.T  # h x N x C x width
        flat = wide.reshape(len(wide), -1)
        for weight in torch.split(rows, num_rows):
            under = weight.any(dim=0).nonzero()
            first, last = int(under[0]), int(under[-1]) + 1
            strip = weight[:, first:last] @ flat[first:last]
            yield strip.view(-1, *wide.shape[1:]).permute(1, 2, 0, 3)

    def _fine(self, cells: int) -> int:
        """How many fine cells there are over so many coarse ones."""
        return self.factor * (cells + 2 * self.border - 1) + self.kernel_size

    def _matrix(self, cells: int, like: Tensor, first: int, count: int) -> Tensor:
        """Weights of the coarse cells in ``count`` fine ones from ``first`` on."""
        coarse = torch.arange(cells, device=like.device)
        fine = torch.arange(count, device=like.device)[:, None] + first
        place = fine - (self.factor * self.border + self.centre)  # from coarse cell 0 on
        weight = self._ramp(place - self.factor * coarse)
        if self.border:  # the cells that are repeated before the first and behind the last one
            weight = weight + (coarse == 0) * self._ramp(place + self.factor)
            weight = weight + (coarse == cells - 1) * self._ramp(place - self.factor * cells)
        return weight.to(like.dtype)

    def _ramp(self, distance: Tensor) -> Tensor:
        """The weight of a coarse cell that is so many fine cells away."""
        return (1 - distance.abs() / self.factor).clamp(min=0)


def fit(fine: Tensor, crop: int, height: int, width: int) -> Tensor:
    """The ``height x width`` cells of ``fine`` that begin ``crop`` cells in, on both axes."""
    return fine[..., crop : crop + height, crop : crop + width]
