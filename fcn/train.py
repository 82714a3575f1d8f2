"""Training, one step at a time, resumable at any step.

Every random number follows from the seed and a position: the order of an epoch from (seed,
epoch), the augmentation of a sample from (seed, epoch, sample), dropout from (seed, step, rank).
A resumed run needs no random state to go on as if it had never stopped.
"""

import copy
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from fcn.checkpoint import Model
from fcn.device import autocast, deterministic, find_device, resolve_precision
from fcn.errors import FcnError, TrainingError
from fcn.loss import JointLoss, median_frequency_weights
from fcn.model import FCN
from fcn.order import Order
from fcn.parallel import World, normalises_batches, pad_to, share_statistics
from fcn.recipes import TrainConfig, make_optimizer
from fcn.samples import DROPOUT, Batch, LabelledSamples, TrainingSamples, mix
from fcn.training_state import pack, training_digest, unpack
from fcn.weights import Transplant

MAX_SKIPS = 20
"""Overflowing fp16 steps in a row before training is given up: each halves the loss scale,
and from PyTorch's first one, 65,536, twenty halvings leave nothing to scale."""


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        step: Number of the step, from 1.
        epoch: Passes over the samples completed after it.
        loss: Mean cross-entropy over the step's labelled pixels; 0 if it has none. Of several
            heads, their sum.
        learning_rate: Peak group's rate in this step.
        num_images: Images in the step, over all ranks.
        seconds: Time of the whole step.
        waited: Part of it that this process's network waited for its batches.
        ends_epoch: The step is the last to begin in its epoch.
        skipped: The step changed no weight: it has no labelled pixel, or its gradient
            overflowed in fp16.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    num_images: int
    seconds: float
    waited: float
    ends_epoch: bool
    skipped: bool


class Trainer:
    """Trains a model on labelled samples.

    A step takes ``config.accumulate`` batches of ``config.batch_size`` samples, fewer at the
    very end. Several processes deal each batch out among them and take the same steps, each with
    a trainer of its own; only dropout draws other numbers than in one alone. With
    ``config.ema_decay``, a second network follows the trained one as a moving average of its
    weights and statistics; it is the one to evaluate and to save.

    Args:
        model: The model; its network is changed in place.
        samples: Training samples in random access; picklable if ``config.num_workers`` > 0.
        config: How to train.
        class_pixels: Pixels of each class in the samples, for class weights; of several heads,
            one's after another's.
        transplant: Where the first weights came from, which decides their learning rates.
        state: Bytes of an earlier `state` of the same training, to go on from there; by
            however many processes.
        world: The processes that train together. All get the same arguments, and their
            ``samples`` are equal. When one raises, the others wait for it: end them.

    Attributes:
        model: The model to evaluate and to save.
        net: The network that is trained: that of ``model``, or the one that it averages.
        world: The processes that train together.
        step: Steps done.
        num_steps: Steps of the whole training.

    Raises:
        CheckpointError: ``state`` is of another training.
        DeviceError: a device this machine does not have.
        TrainingError: Settings that several processes cannot follow.
        ValueError: No sample.
    """

    def __init__(
        self,
        model: Model,
        samples: LabelledSamples,
        config: TrainConfig,
        *,
        class_pixels: Sequence[int],
        transplant: Transplant,
        state: bytes | None = None,
        world: World = World(),  # noqa: B008 - frozen
    ) -> None:
        if not len(samples):
            raise ValueError("the training split has no sample")
        check_shareable(config, model.net, world.size)
        self.config, self._transplant = config, transplant
        self.recipe = config.effective_recipe()
        self.device = find_device(config.device)
        self.num_samples = len(samples)
        self._order = Order(
            num_samples=len(samples),
            epochs=config.epochs,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
        )
        self.num_steps = self._order.num_steps
        self.step = 0
        self._skips = 0
        self._samples = TrainingSamples(
            samples, config, model.classes, model.further_classes, model.input.bands
        )
        self._digest = training_digest(model, config, self.num_samples)
        self.world = world

        self.net = model.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if world.size > 1:
            share_statistics(self.net, self.device)
        self.model = replace(model, net=copy.deepcopy(self.net)) if config.ema_decay else model
        self._forward = torch.compile(self.net) if config.compile else self.net
        rate = self.recipe.learning_rate
        if config.learning_rate is None:
            net = model.net
            stages = num_stages(net.stride, transplant.from_stride, net.coarsest)
            rate *= self.recipe.stage_rate**stages
        self._learning_rate = rate
        # One rate throughout once an FCN is refined: its layers belong together.
        slow = frozenset(transplant.copied) if transplant.from_stride is None else frozenset()
        self._optimizer = make_optimizer(self.net, self.recipe, rate, slow)
        self._peaks = [float(group["lr"]) for group in self._optimizer.param_groups]
        fp16 = resolve_precision(self.device, config.precision) == "fp16"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        num_classes = [len(classes) for classes in model.all_classes]
        weights = None
        if config.class_weights == "median_frequency":
            by_head = torch.split(torch.tensor(class_pixels), num_classes)
            weights = torch.cat([median_frequency_weights(p.tolist()) for p in by_head])
            weights = weights.to(self.device)
        self._loss = JointLoss(num_classes, model.classes.ignore_index, weights)
        if state is not None:
            self._restore(state)

    def run(self) -> Iterator[Step]:
        """Train from where the state left off to the last step, yielding after each.

        Between two steps the trainer rests: `state` may be taken and the model used.

        Raises:
            ImageError: A sample whose image or label map cannot be decoded; says which.
            LabelError: A label map of another size than its image, or with a value that is
                neither a class nor ``ignore_index``; says of which sample.
            TrainingError: The loss or its gradient is not finite, or every one of `MAX_SKIPS`
                steps in a row overflowed in fp16. No weight holds anything of such a step.
        """
        batches = iter(self._loader())
        reproducible = deterministic if self.config.deterministic else nullcontext
        while self.step < self.num_steps:
            start = time.perf_counter()
            group = [
                _unless_error(next(batches)) if size > self.world.rank else self._no_images()
                for size in self._order.batch_sizes(self.step)
            ]
            waited = time.perf_counter() - start
            factor = self.recipe.rate(self.step, self.num_steps)
            with reproducible():
                loss, skipped = self._update(group, factor)
            before = self.num_seen
            self.step += 1
            seen = self.num_seen
            epoch = seen // self.num_samples
            seconds = time.perf_counter() - start
            yield Step(
                step=self.step,
                epoch=epoch,
                loss=loss,
                learning_rate=self._learning_rate * factor,
                num_images=seen - before,
                seconds=seconds,
                waited=waited,
                ends_epoch=epoch > before // self.num_samples,
                skipped=skipped,
            )

    def state(self) -> bytes:
        """All that going on needs, as the bytes of a safetensors file.

        Raises:
            TrainingError: A weight is not finite. So every state that exists is usable.
        """
        tensors = self.net.state_dict()
        wrong = [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
        if wrong:
            raise TrainingError(
                f"{len(wrong)} of {len(tensors)} weights are not finite after step {self.step}, "
                f"first {wrong[0]}; {self._advice(self._learning_rate)}"
            )
        metadata = {
            "step": str(self.step),
            "skips": str(self._skips),
            "scaler": json.dumps(self._scaler.state_dict()),
            "training": self._digest,
            "transplant": self._transplant.model_dump_json(),
        }
        return pack(self._nets(), self._optimizer, metadata)

    def _restore(self, state: bytes) -> None:
        metadata = unpack(state, self._digest, self._nets(), self._optimizer)
        self.step, self._skips = int(metadata["step"]), int(metadata["skips"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(json.loads(metadata["scaler"]))

    def _update(self, batches: Sequence[Batch], factor: float) -> tuple[float, bool]:
        """One step of the optimizer: the loss before it, and whether it was skipped."""
        torch.manual_seed(mix(DROPOUT, self.config.seed, self.step, self.world.rank))
        self.net.train()
        batches = [(images, label.to(self.device, non_blocking=True)) for images, label in batches]
        totals, sizes = self._agree(batches)
        if not totals.any():
            return 0.0, True
        rate = self._learning_rate * factor
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self._optimizer.zero_grad(set_to_none=True)
        losses = [
            self._backward(*pad_to(*batch, size, self.model.classes.ignore_index), totals)
            for batch, size in zip(batches, sizes, strict=True)
        ]
        summed = torch.stack(losses).sum()
        self.world.add([*self._gradients(), summed])
        loss = float(summed)
        if not np.isfinite(loss):
            raise TrainingError(f"the loss is {loss} at step {self.step + 1}; {self._advice(rate)}")
        return loss, not self._apply(rate)

    def _agree(self, batches: Sequence[Batch]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Of all ranks: the loss's totals of the step, and height and width of each batch."""
        own = [
            torch.cat([torch.tensor(label.shape[-2:]), self._loss.totals(label)])
            for _, label in batches
        ]
        every = self.world.gather(torch.stack(own))  # ranks x batches x (2 + heads)
        sizes = every[:, :, :2].amax(dim=0).int().tolist()
        totals = every[:, :, 2:].sum(dim=(0, 1))
        return totals, [(height, width) for height, width in sizes]

    def _no_images(self) -> Batch:
        """The share of a rank that none of the last images fall to."""
        further = self.model.further_classes
        heads = [1 + len(further)] if further else []
        images = torch.empty(0, self.model.input.num_channels, 1, 1, dtype=torch.uint8)
        return images, torch.from_numpy(np.empty((0, *heads, 1, 1), self._samples.dtype))

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.net.parameters() if p.grad is not None]

    def _backward(self, images: Tensor, labels: Tensor, totals: Tensor) -> Tensor:
        """Add one batch's gradient; its part of the step's loss."""
        pixels = images.to(self.device, non_blocking=True)
        inputs = self.model.input.normalise(pixels).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.config.precision):
            scores = self._forward(inputs)
        loss = self._loss(scores, labels, totals)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _apply(self, rate: float) -> bool:
        """Change the weights by the gradient, unless it overflowed in fp16; whether it was so."""
        self._scaler.unscale_(self._optimizer)
        finite = bool(get_total_norm(self._gradients(), norm_type=torch.inf).isfinite())
        if not finite and not self._scaler.is_enabled():
            raise TrainingError(
                f"the gradient is not finite at step {self.step + 1}; {self._advice(rate)}"
            )
        self._scaler.step(self._optimizer)  # skips a gradient that is not finite
        self._scaler.update()  # and halves the scale then
        self._skips = 0 if finite else self._skips + 1
        if self._skips == MAX_SKIPS:
            raise TrainingError(
                f"fp16 overflowed in {MAX_SKIPS} steps in a row, the last one {self.step + 1}; "
                f"{self._advice(rate)}"
            )
        if finite and self.config.ema_decay:
            # Few steps average little: the first weights would stay for 1 / (1 - decay) steps.
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            move_average(self.model.net, self.net, decay)
        return finite

    def _advice(self, rate: float) -> str:
        precision = resolve_precision(self.device, self.config.precision)
        other = "" if precision == "fp32" else f", or another precision than {precision}"
        return (
            "what was saved before is usable. Try, in another run, a learning rate below "
            f"{rate:g}{other}"
        )

    def _nets(self) -> list[tuple[FCN, str]]:
        """The networks of a state, and what the names of their weights begin with there."""
        average = [(self.model.net, "average.")] if self.config.ema_decay else []
        return [(self.net, "net."), *average]

    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._samples,
            batch_sampler=self.batches(),
            num_workers=self.config.num_workers,
            collate_fn=self._samples.collate,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="spawn" if self.config.num_workers else None,
        )

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """(epoch, sample) of this rank's share of each batch from this step on, if it has one."""
        return self._order.batches(self.step, self.world)

    @property
    def num_seen(self) -> int:
        """Samples that the steps so far took, each counted once an epoch."""
        return self._order.num_seen(self.step)


def num_stages(stride: int, from_stride: int | None, coarsest: int) -> int:
    """How many stages of the paper's staged training end at ``stride``: 8s is two after 32s.

    Refined from 16s or straight from 32s, an 8s has the learning rate of its own place: that of
    the release is 1e-10, 1e-12, 1e-14 for 32s, 16s, 8s.

    Args:
        stride: Of the network to be trained.
        from_stride: Of the FCN that its weights come from; no coarser one makes no stage.
        coarsest: Stride of the trunk's last map, where the first stage stands.
    """
    if from_stride is None or from_stride <= stride:
        return 0
    return (coarsest // stride).bit_length() - 1


@torch.no_grad()
def move_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move a network's weights and statistics to ``decay * average + (1 - decay) * net``."""
    values = net.state_dict()
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():
            mean.lerp_(values[name], 1 - decay)
        else:
            mean.copy_(values[name])  # how many batches a normalisation has seen


def check_shareable(config: TrainConfig, net: FCN, num_processes: int) -> None:
    """Find out whether so many processes can train a network together.

    Raises:
        TrainingError: They cannot; says why.
    """
    if config.batch_size < num_processes:
        raise TrainingError(
            f"a batch of {config.batch_size} images cannot be dealt out to {num_processes} "
            f"processes; give a batch_size of at least {num_processes}, or fewer num_processes"
        )
    if num_processes > 1 and config.compile and normalises_batches(net):
        raise TrainingError(
            f"compile=True does not go with the batch normalisation of {config.backbone} over "
            f"{num_processes} processes, which exchange its statistics within the network; give "
            "compile=False, num_processes=1, or a backbone without it"
        )


def _unless_error(batch: Batch | FcnError) -> Batch:
    if isinstance(batch, FcnError):
        raise batch
    return batch
