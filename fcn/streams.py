"""Batches through a network on a GPU, one coming down and one going up while one is in work.

Only bytes cross the bus: pixels up, labels down, both through pinned memory. Three streams keep
uploads, the network and downloads apart, and events order them; nothing waits for the GPU but
who wants a batch's labels.
"""

import copy
import subprocess
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn

from fcn.device import Precision, resolve_precision
from fcn.geometry import CoordinateMap
from fcn.graphs import Graph, Recurring
from fcn.input import InputSpec
from fcn.model import FCN
from fcn.upsample import Upscore
from fcn.winners import winners

STRIP_ROWS = 64
"""Rows that are upsampled and read off together where there is no fused kernel."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Window = tuple[int, int, int, int]
"""First row and column of an image, height and width, in pixels."""

Found = tuple[list[np.ndarray], Tensor]
"""Label maps ``N x H x W`` of each of K heads, and sums of the winning probabilities, float64
``K x N``."""


def on_gpu(net: FCN, device: torch.device, precision: Precision) -> FCN:
    """A copy of a network for predictions on a GPU; the network itself stays as it is.

    Weights of convolutions are in the precision, channels last. Autocast would convert all of
    them anew for every batch. Normalisations keep float32, as under autocast.
    """
    net = copy.deepcopy(net).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(DTYPES[resolve_precision(device, precision)])
    return net.requires_grad_(False)


class Labeller:
    """Labels of batches, all of it on the device: normalise, score, upsample, choose.

    Args:
        net: As `on_gpu` gives it.
        input: What the network was trained on.
        sizes: Classes of each head.
    """

    def __init__(self, net: FCN, input: InputSpec, sizes: Sequence[int]) -> None:  # noqa: A002
        weight = net.score_fr.weight
        self.net, self.sizes, self.dtype = net, list(sizes), weight.dtype
        self._backwards = input.channel_order == "BGR"
        # Made once: a graph cannot copy from the host's memory.
        self._mean = torch.tensor(input.means, device=weight.device)
        self._std = torch.tensor(input.stds, device=weight.device)
        self._channels = torch.tensor(input.channels, device=weight.device)
        self._fused = None if net.upscore.weight is not None else find_fused(weight.device)

    def score(self, pixels: Tensor) -> Tensor:
        """Scores ``N x C x h x w`` at the network's stride, of ``N x H x W x (3 + B)``."""
        if self._backwards:
            pixels = pixels.index_select(3, self._channels)
        images = ((pixels.float() - self._mean) / self._std).to(self.dtype)
        return self.net.score(images.permute(0, 3, 1, 2))

    def choose(self, score: Tensor, window: Window) -> list[Tensor]:
        """Label maps ``N x H x W`` of each head, then float64 ``K x N`` sums of probabilities."""
        top, left, height, width = window
        upscore = self.net.upscore
        window = upscore.crop + top, upscore.crop + left, height, width
        if self._fused is None:
            return winners_by_strip(upscore, score, self.sizes, window)
        heads = torch.split(score, self.sizes, dim=1)
        labels, sums = zip(*(self._fused(upscore, head, *window) for head in heads), strict=True)
        return [*labels, torch.stack(sums)]

    def __call__(self, pixels: Tensor, window: Window) -> list[Tensor]:
        """`choose` of `score`."""
        return self.choose(self.score(pixels), window)


def winners_by_strip(
    upscore: Upscore, score: Tensor, sizes: list[int], window: Window
) -> list[Tensor]:
    """`Labeller.choose` in plain torch: the scores of a strip of rows are in memory at once.

    Of learnable kernels they are all in memory: those have one way to upsample.
    """
    labels: list[list[Tensor]] = [[] for _ in sizes]
    sums = torch.zeros(len(sizes), len(score), dtype=torch.float64, device=score.device)
    for strip in upscore.strips(score, *window, STRIP_ROWS):
        for head, scores in enumerate(torch.split(strip.float(), sizes, dim=1)):
            label, total = winners(scores)
            labels[head].append(label)
            sums[head] += total
    dtypes = [torch.uint8 if size <= 256 else torch.uint16 for size in sizes]
    return [*(torch.cat(x, 1).to(dtype) for x, dtype in zip(labels, dtypes, strict=True)), sums]


@cache
def find_fused(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """`fcn.fused.fused_winners` where it runs: on a GPU, with Triton and its C compiler."""
    if device.type != "cuda":
        return None
    upscore = Upscore(1, CoordinateMap(8, 3.5), CoordinateMap(), replicate_border=True)
    try:
        fused: Callable[..., tuple[Tensor, Tensor]] = import_module("fcn.fused").fused_winners
        fused(upscore, torch.zeros(1, 1, 1, 1, device=device), 0, 0, 1, 1)
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        warnings.warn(
            f"labels are read off by the strip, which is slower: Triton does not run here: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return fused


class Streams:
    """A network on a GPU that takes the next batch while one is in work.

    May be called from several threads; their batches run one after another.

    Args:
        net: As `on_gpu` gives it.
        input: What the network was trained on.
        sizes: Classes of each head.
    """

    def __init__(self, net: FCN, input: InputSpec, sizes: Sequence[int]) -> None:  # noqa: A002
        self.device = net.score_fr.weight.device
        self._labeller = Labeller(net, input, sizes)
        self._dtype = torch.uint8 if input.dtype == np.uint8 else torch.float32
        stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
        self._up, self._run, self._down = (stream(self.device) for _ in range(3))
        self._run.wait_stream(torch.cuda.current_stream(self.device))  # the weights are there
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs = Recurring(self._record)
        self._launching = threading.Lock()

    @torch.inference_mode()
    def begin(self, images: Sequence[np.ndarray], window: Window) -> Callable[[], Found]:
        """Start a batch of images of equal size; what is returned waits for it.

        Args:
            images: As `InputSpec.check_images` gives them.
            window: The part of them whose labels are wanted.

        Raises:
            torch.OutOfMemoryError: no room for the batch.
        """
        pinned = torch.empty(
            (len(images), *images[0].shape), dtype=self._dtype, device="cpu", pin_memory=True
        )
        np.stack(images, out=pinned.numpy())
        with self._launching:
            with torch.cuda.stream(self._up):
                pixels = pinned.to(self.device, non_blocking=True)
            self._run.wait_stream(self._up)
            with torch.cuda.stream(self._run):
                graph = self._graphs.find((tuple(pixels.shape), window))
                found = graph(pixels) if graph else self._labeller(pixels, window)
            self._down.wait_stream(self._run)
            with torch.cuda.stream(self._down):
                arriving = [_pinned_copy(tensor) for tensor in found]
                # Blocking: whoever waits leaves the core to those who decode.
                arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                arrived.record(self._down)
        # Held until all have arrived: other streams than those that made them read from these.
        on_device = [pixels, *found]

        def wait() -> Found:
            arrived.synchronize()
            on_device.clear()
            *labels, sums = arriving
            return [label.numpy().copy() for label in labels], sums.clone()

        return wait

    def _record(self, key: tuple[tuple[int, ...], Window]) -> Graph | None:
        """The graph for batches of a shape and a window; None where memory is short."""
        shape, window = key
        try:
            return Graph(
                lambda pixels: self._labeller(pixels, window),
                shape,
                self._run,
                self._pool,
                self._dtype,
            )
        except torch.OutOfMemoryError:
            return None


def _pinned_copy(tensor: Tensor) -> Tensor:
    """A tensor of the GPU in the host's memory, once the current stream comes to it."""
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
