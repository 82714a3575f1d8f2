"""Training samples: decoded, checked and augmented, by epoch and place.

The augmentation of a sample follows from (seed, epoch, sample), whichever process makes it.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from fcn.augment import Augment
from fcn.classes import Classes
from fcn.errors import FcnError, LabelError
from fcn.images import decode_image
from fcn.masks import decode_mask
from fcn.metrics import check_classes
from fcn.recipes import TrainConfig

ORDER, SAMPLE, DROPOUT = range(3)
"""What random numbers are drawn for; see `mix`."""

Batch = tuple[Tensor, Tensor]
"""Images uint8 ``N x 3 x H x W`` and label maps ``N x H x W``; one of each without the N."""


class Labelled(Protocol):
    """An image and its label map, as bytes, and their name."""

    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def image(self) -> bytes: ...  # noqa: D102
    @property
    def label(self) -> bytes: ...  # noqa: D102


class LabelledSamples(Protocol):
    """Labelled images in random access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Labelled: ...


class TrainingSamples(Dataset[Batch | FcnError]):
    """Decoded and augmented samples, by (epoch, sample).

    What is wrong with a sample comes back as a value: raised in a worker, a `DataLoader` would
    wrap it into that process's traceback.
    """

    def __init__(self, samples: LabelledSamples, config: TrainConfig, classes: Classes) -> None:
        self.samples = samples
        self.seed = config.seed
        self.num_classes, self.ignore_index = len(classes), classes.ignore_index
        small = max(self.num_classes - 1, self.ignore_index) < 256 and self.ignore_index >= 0
        self.dtype = np.uint8 if small else np.int32  # eight times less than int64 to hand over
        vary = config.effective_recipe().augment
        self.augment = Augment(config.crop_size, self.ignore_index, vary=vary)

    def __getitem__(self, place: tuple[int, int]) -> Batch | FcnError:
        """uint8 image ``3 x H x W`` and integer label map ``H x W``, or what is wrong there."""
        epoch, index = place
        sample = self.samples[index]
        try:
            image, label = self._decode(sample)
        except FcnError as error:
            return type(error)(f"training sample {sample.key}: {error}")
        generator = torch.Generator().manual_seed(mix(SAMPLE, self.seed, epoch, index))
        return self.augment(image, label, generator)

    def _decode(self, sample: Labelled) -> Batch:
        image, label = decode_image(sample.image).pixels, decode_mask(sample.label)
        if image.shape[:2] != label.shape:
            raise LabelError(f"label map is {label.shape}, its image {image.shape[:2]}")
        check_classes("label", label[label != self.ignore_index], self.num_classes)
        return (
            torch.from_numpy(image).permute(2, 0, 1),
            torch.from_numpy(label.astype(self.dtype)),
        )

    def collate(self, samples: list[Batch | FcnError]) -> Batch | FcnError:
        """One batch, padded to its largest height and width: images with 0, labels ignored."""
        batch = []
        for sample in samples:
            if isinstance(sample, FcnError):
                return sample
            batch.append(sample)
        height = max(label.shape[0] for _, label in batch)
        width = max(label.shape[1] for _, label in batch)
        paddings = [(0, width - y.shape[1], 0, height - y.shape[0]) for _, y in batch]
        images = [functional.pad(x, p) for (x, _), p in zip(batch, paddings, strict=True)]
        labels = [
            functional.pad(y, p, value=self.ignore_index)
            for (_, y), p in zip(batch, paddings, strict=True)
        ]
        return torch.stack(images), torch.stack(labels)


def mix(purpose: int, *numbers: int) -> int:
    """A seed of its own for each purpose and place, of numbers below 2**32."""
    sequence = np.random.SeedSequence(numbers, spawn_key=(purpose,))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
