"""Training samples: decoded, checked and augmented, by epoch and place.

The augmentation of a sample follows from (seed, epoch, sample), whichever process makes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from fcn.augment import Augment, pad
from fcn.bands import Band, decode_stacked
from fcn.classes import Classes
from fcn.errors import FcnError, LabelError
from fcn.images import decode_image
from fcn.masks import decode_mask
from fcn.metrics import check_classes
from fcn.recipes import TrainConfig

ORDER, SAMPLE, DROPOUT = range(3)
"""What random numbers are drawn for; see `mix`."""

Batch = tuple[Tensor, Tensor]
"""Images uint8 ``N x 3 x H x W``, with B bands float32 ``N x (3 + B) x H x W``, and label maps
``N x H x W``, of K heads ``N x K x H x W``; one of each without the N."""


class Labelled(Protocol):
    """An image and its label map, as bytes, and their name."""

    @property
    def key(self) -> str: ...  # noqa: D102
    @property
    def image(self) -> bytes: ...  # noqa: D102
    @property
    def label(self) -> bytes: ...  # noqa: D102
    @property
    def further_labels(self) -> Mapping[str, bytes | None]:
        """Label maps of further heads, by name; None where the image is not labelled for one.

        Asked for only by a model of several heads.
        """
        ...

    @property
    def bands(self) -> Mapping[str, bytes | None]:
        """Files of its bands, by name. Asked for only by a model of images with bands."""
        ...


class LabelledSamples(Protocol):
    """Labelled images in random access."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Labelled: ...


class TrainingSamples(Dataset[Batch | FcnError]):
    """Decoded and augmented samples, by (epoch, sample).

    What is wrong with a sample comes back as a value: raised in a worker, a `DataLoader` would
    wrap it into that process's traceback.
    """

    def __init__(
        self,
        samples: LabelledSamples,
        config: TrainConfig,
        classes: Classes,
        further_classes: Mapping[str, Classes] | None = None,
        bands: Sequence[Band] = (),
    ) -> None:
        self.samples = samples
        self.bands = tuple(bands)
        self.seed = config.seed
        self.further = tuple(further_classes or ())
        self.num_classes = [len(c) for c in (classes, *(further_classes or {}).values())]
        self.ignore_index = classes.ignore_index
        small = max(*self.num_classes, self.ignore_index + 1) <= 256 and self.ignore_index >= 0
        self.dtype = np.uint8 if small else np.int32  # eight times less than int64 to hand over
        vary = config.effective_recipe().augment
        self.augment = Augment(config.crop_size, self.ignore_index, vary=vary)

    def __getitem__(self, place: tuple[int, int]) -> Batch | FcnError:
        """Image and label map, see `Batch`, or what is wrong there."""
        epoch, index = place
        sample = self.samples[index]
        try:
            image, label = self._decode(sample)
        except FcnError as error:
            return type(error)(f"training sample {sample.key}: {error}")
        generator = torch.Generator().manual_seed(mix(SAMPLE, self.seed, epoch, index))
        return self.augment(image, label, generator)

    def _decode(self, sample: Labelled) -> Batch:
        image = decode_pixels(sample, self.bands)
        labels = decode_labels(sample, self.further, image.shape[:2], self.ignore_index)
        for label, num_classes in zip(labels, self.num_classes, strict=True):
            check_classes("label", label[label != self.ignore_index], num_classes)
        tensors = [torch.from_numpy(label.astype(self.dtype)) for label in labels]
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        return (
            pixels.float() if self.bands else pixels,
            torch.stack(tensors) if self.further else tensors[0],
        )

    def collate(self, samples: list[Batch | FcnError]) -> Batch | FcnError:
        """One batch, padded to its largest height and width: images with `pad`, labels ignored."""
        batch = []
        for sample in samples:
            if isinstance(sample, FcnError):
                return sample
            batch.append(sample)
        height = max(label.shape[-2] for _, label in batch)
        width = max(label.shape[-1] for _, label in batch)
        paddings = [(0, width - y.shape[-1], 0, height - y.shape[-2]) for _, y in batch]
        images = [pad(x, p) for (x, _), p in zip(batch, paddings, strict=True)]
        labels = [
            functional.pad(y, p, value=self.ignore_index)
            for (_, y), p in zip(batch, paddings, strict=True)
        ]
        return torch.stack(images), torch.stack(labels)


def decode_pixels(sample: Labelled, bands: Sequence[Band] = ()) -> NDArray[Any]:
    """The image of a sample with its bands, as `fcn.bands.stack` gives it.

    Raises:
        ImageError: An image or band that cannot be decoded, a band that is not there or does
            not fit.
    """
    image = decode_image(sample.image).pixels
    return decode_stacked(image, sample.bands, bands) if bands else image


def decode_labels(
    sample: Labelled, further: Sequence[str], size: tuple[int, ...], ignore_index: int
) -> list[NDArray[Any]]:
    """The label map of the first head and those of further ones, ``H x W`` each.

    Args:
        sample: What to decode.
        further: Names of the further heads.
        size: Height and width of the image.
        ignore_index: Label of every pixel where the image is not labelled for a head.

    Raises:
        ImageError: A label map that cannot be decoded.
        LabelError: A label map of another size than its image.
    """
    labels = [decode_mask(sample.label)]
    for name in further:
        data = sample.further_labels[name]
        # int32: not every ignore_index fits a byte
        labels.append(np.full(size, ignore_index, np.int32) if data is None else decode_mask(data))
    for label in labels:
        if label.shape != size:
            raise LabelError(f"label map is {label.shape}, its image {size}")
    return labels


def mix(purpose: int, *numbers: int) -> int:
    """A seed of its own for each purpose and place, of numbers below 2**32."""
    sequence = np.random.SeedSequence(numbers, spawn_key=(purpose,))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
