"""Training, one step at a time, resumable at any step.

Every random number follows from the seed and a position: the order of an epoch from (seed,
epoch), the augmentation of a sample from (seed, epoch, sample), dropout from (seed, step).
A resumed run needs no random state to go on as if it had never stopped.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from fcn.augment import Augment
from fcn.checkpoint import Model, check_fit, read_safetensors
from fcn.device import autocast, find_device
from fcn.errors import CheckpointError, TrainingError
from fcn.images import decode_image
from fcn.loss import median_frequency_weights, pixel_cross_entropy
from fcn.masks import decode_mask
from fcn.recipes import RECIPES, TrainConfig, make_optimizer
from fcn.weights import Transplant

_ORDER, _SAMPLE, _DROPOUT = range(3)
"""What random numbers are drawn for; see `_mix`."""


class Labelled(Protocol):
    """An image and its label map, as bytes."""

    @property
    def image(self) -> bytes: ...  # noqa: D102
    @property
    def label(self) -> bytes: ...  # noqa: D102


class LabelledSamples(Protocol):
    """Labelled images in random access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Labelled: ...


@dataclass(frozen=True)
class Step:
    """What one step did.

    Attributes:
        step: Number of the step, from 1.
        epoch: Passes over the samples completed after it.
        loss: Mean cross-entropy of the batch.
        learning_rate: Peak group's rate in this step.
        num_images: Images in the batch.
        seconds: Time of the whole step.
        waited: Part of it that the network waited for its batch.
        ends_epoch: The step is the last to begin in its epoch.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    num_images: int
    seconds: float
    waited: float
    ends_epoch: bool


class Trainer:
    """Trains a model on labelled samples.

    Args:
        model: The model; its network is changed in place.
        samples: Training samples in random access; picklable if ``config.num_workers`` > 0.
        config: How to train.
        class_pixels: Pixels of each class in the samples, for class weights.
        transplant: Where the first weights came from, which decides their learning rates.
        state: Bytes of an earlier `state` of the same training, to go on from there.

    Raises:
        CheckpointError: ``state`` is of another training.
        DeviceError: a device this machine does not have.
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
    ) -> None:
        if not len(samples):
            raise ValueError("the training split has no sample")
        self.model, self.config, self._transplant = model, config, transplant
        self.recipe = RECIPES[config.recipe]
        self.device = find_device(config.device)
        self.num_samples = len(samples)
        self.num_steps = -(-config.epochs * self.num_samples // config.batch_size)
        self.step = 0
        self._samples = TrainingSamples(samples, config, model.classes.ignore_index)
        self._digest = training_digest(model, config, self.num_samples)

        self.net = model.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rate = config.learning_rate or self.recipe.learning_rate
        if config.learning_rate is None:
            rate *= self.recipe.stage_rate ** num_stages(model.net.stride, transplant.from_stride)
        self._learning_rate = rate
        # One rate throughout once an FCN is refined: its layers belong together.
        slow = frozenset(transplant.copied) if transplant.from_stride is None else frozenset()
        self._optimizer = make_optimizer(self.net, self.recipe, rate, slow)
        self._peaks = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._weights: Tensor | None = None
        if config.class_weights == "median_frequency":
            self._weights = median_frequency_weights(class_pixels).to(self.device)
        if state is not None:
            self._restore(state)

    def run(self) -> Iterator[Step]:
        """Train from where the state left off to the last step, yielding after each.

        Between two steps the trainer rests: `state` may be taken and the model used.

        Raises:
            TrainingError: The loss is not finite.
        """
        batches = iter(self._loader())
        while self.step < self.num_steps:
            start = time.perf_counter()
            images, labels = next(batches)
            waited = time.perf_counter() - start
            factor = self.recipe.rate(self.step, self.num_steps)
            loss = self._update(images, labels, factor)
            before = self.step * self.config.batch_size // self.num_samples
            self.step += 1
            seen = min(self.step * self.config.batch_size, self.config.epochs * self.num_samples)
            epoch = seen // self.num_samples
            seconds = time.perf_counter() - start
            yield Step(
                step=self.step,
                epoch=epoch,
                loss=loss,
                learning_rate=self._learning_rate * factor,
                num_images=len(images),
                seconds=seconds,
                waited=waited,
                ends_epoch=epoch > before,
            )

    def state(self) -> bytes:
        """All that going on needs, as the bytes of a safetensors file."""
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {
            "step": str(self.step),
            "training": self._digest,
            "transplant": self._transplant.model_dump_json(),
        }
        return save_tensors(tensors, metadata)

    def _restore(self, state: bytes) -> None:
        tensors, metadata = read_safetensors(state)
        if metadata.get("training") != self._digest:
            raise CheckpointError(
                "the state is of another training: the configuration, the classes or the number "
                "of samples differ"
            )
        weights = {n.removeprefix("net."): t for n, t in tensors.items() if n.startswith("net.")}
        check_fit(self.net, weights)
        self.net.load_state_dict(weights)
        for name, parameter in self.net.named_parameters():
            prefix = f"optimizer.{name}."
            self._optimizer.state[parameter] = {
                key.removeprefix(prefix): _beside(value, parameter)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
        self.step = int(metadata["step"])

    def _update(self, images: Tensor, labels: Tensor, factor: float) -> float:
        """One step of the optimizer; the loss before it."""
        torch.manual_seed(_mix(_DROPOUT, self.config.seed, self.step))
        self.net.train()
        pixels = images.to(self.device, non_blocking=True)
        inputs = self.model.input.normalise(pixels).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.config.precision):
            scores = self.net(inputs)
        loss = pixel_cross_entropy(
            scores,
            labels.to(self.device, non_blocking=True),
            ignore_index=self.model.classes.ignore_index,
            class_weights=self._weights,
        )
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step + 1}; the last saved state is usable. "
                f"Try a learning rate below {self._learning_rate * factor:g}"
            )
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return value

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
        """(epoch, sample) of each batch from this step on; epochs follow without a seam."""
        size, total = self.config.batch_size, self.config.epochs * self.num_samples
        stream = itertools.islice(self._stream(), self.step * size, total)
        while batch := list(itertools.islice(stream, size)):
            yield batch

    def _stream(self) -> Iterator[tuple[int, int]]:
        for epoch in range(self.config.epochs):
            generator = torch.Generator().manual_seed(_mix(_ORDER, self.config.seed, epoch))
            order = torch.randperm(self.num_samples, generator=generator).tolist()
            yield from ((epoch, sample) for sample in order)


class TrainingSamples(Dataset[tuple[Tensor, Tensor]]):
    """Decoded and augmented samples, by (epoch, sample)."""

    def __init__(self, samples: LabelledSamples, config: TrainConfig, ignore_index: int) -> None:
        self.samples = samples
        self.seed = config.seed
        self.ignore_index = ignore_index
        self.augment = Augment(config.crop_size, ignore_index, vary=RECIPES[config.recipe].augment)

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """uint8 image ``3 x H x W`` and integer label map ``H x W``."""
        epoch, index = place
        sample = self.samples[index]
        image = torch.from_numpy(decode_image(sample.image).pixels).permute(2, 0, 1)
        label = torch.from_numpy(decode_mask(sample.label).astype(np.int64))
        generator = torch.Generator().manual_seed(_mix(_SAMPLE, self.seed, epoch, index))
        return self.augment(image, label, generator)

    def collate(self, batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """One batch, padded to its largest height and width: images with 0, labels ignored."""
        height = max(label.shape[0] for _, label in batch)
        width = max(label.shape[1] for _, label in batch)
        paddings = [(0, width - y.shape[1], 0, height - y.shape[0]) for _, y in batch]
        images = [functional.pad(x, p) for (x, _), p in zip(batch, paddings, strict=True)]
        labels = [
            functional.pad(y, p, value=self.ignore_index)
            for (_, y), p in zip(batch, paddings, strict=True)
        ]
        return torch.stack(images), torch.stack(labels)


def transplant_of(state: bytes) -> Transplant:
    """Where the first weights of a training came from, read off its state.

    Raises:
        CheckpointError: The bytes are no state of a training.
    """
    _, metadata = read_safetensors(state)
    try:
        return Transplant.model_validate_json(metadata["transplant"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"not the state of a training: {error}") from error


def num_stages(stride: int, from_stride: int | None) -> int:
    """Stages of the paper's staged training between two strides: 32s to 8s is two."""
    if from_stride is None or from_stride <= stride:
        return 0
    return (from_stride // stride).bit_length() - 1


def training_digest(model: Model, config: TrainConfig, num_samples: int) -> str:
    """Digest of all that a state must share with the training that takes it up."""
    facts = [config.decisive(), model.classes.to_json(), model.classes.ignore_index, num_samples]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _mix(purpose: int, *numbers: int) -> int:
    """A seed of its own for each purpose and place, of numbers below 2**32."""
    sequence = np.random.SeedSequence(numbers, spawn_key=(purpose,))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def _beside(value: Tensor, parameter: Tensor) -> Tensor:
    """An optimizer's tensor on its parameter's device; step counters stay on the CPU."""
    return value if value.ndim == 0 else value.to(parameter.device)
