"""What the network says of images: on a CPU an image a core, on a GPU a batch at a time."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

from fcn.classes import Classes
from fcn.errors import ScoresNotFinite
from fcn.predict import MAX_WHOLE_PIXELS, Prediction
from tasks.cores import Cores
from tasks.seconds import Seconds

Outcome = Prediction | Exception
"""What is said of an image; an exception where it has no finite scores, or does not fit into
memory even alone."""

_NO_ROOM = "DefaultCPUAllocator"
"""Named in PyTorch's error, which has no class of its own, where a CPU's memory has no room."""


class Segmenter(Protocol):
    """What the engine needs of a `fcn.Predictor`."""

    @property
    def classes(self) -> Classes:
        """Classes of the label maps."""

    @property
    def side_by_side(self) -> bool:
        """Whether it runs on the cores of this machine, an image a core.

        Another, a GPU's, is called with a batch by every shard in work, in a thread of its own.
        """

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Label maps and confidences of images, RGB uint8 ``H x W x 3`` or with bands, in order."""


class Networks:
    """A predictor on the cores of this machine, or on a device of its own.

    Args:
        predictor: The trained model.
        cores: What runs it, unless it has a device of its own.
        seconds: Gets the time added.
    """

    def __init__(self, predictor: Segmenter, cores: Cores, seconds: Seconds) -> None:
        self.predictor = predictor
        self.cores = cores
        self.seconds = seconds

    def take_one_by_one(self, num_pixels: int) -> bool:
        """Whether images of so many pixels run an image a core, see `begin`."""
        fit = num_pixels * self.cores.number <= MAX_WHOLE_PIXELS
        return self.predictor.side_by_side and fit

    def begin(self, key: str, image: np.ndarray) -> Callable[[], Outcome]:
        """Run an image on one core, once one is free; what is returned waits for it."""
        images = {key: image}
        job = self.cores.on_one(partial(self._run, images, 1 / self.cores.number))
        return lambda: self._found(images, job.result)[0]

    def together(self, images: Mapping[str, np.ndarray]) -> list[Outcome]:
        """Run images of equal size together, by key; their outcomes in order."""
        if not images:
            return []
        run = partial(self._run, images, 1.0)
        if not self.predictor.side_by_side:
            # In this thread: a GPU has the next shard's batch on its way while one is in work.
            return self._found(images, run)
        return self._found(images, self.cores.on_all(run).result)

    def _found(
        self, images: Mapping[str, np.ndarray], found: Callable[[], list[Outcome]]
    ) -> list[Outcome]:
        try:
            return found()
        except (torch.OutOfMemoryError, MemoryError, ScoresNotFinite) as error:
            if len(images) == 1:
                return [error]
        return [one for key in images for one in self.together({key: images[key]})]

    def _run(self, images: Mapping[str, np.ndarray], cores: float) -> list[Outcome]:
        with self.seconds.measure("network", images, cores=cores):
            try:
                return list(self.predictor.predict(list(images.values())))
            except RuntimeError as error:
                if _NO_ROOM in str(error):
                    raise MemoryError(str(error).partition("\n")[0]) from error
                raise
