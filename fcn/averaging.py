"""Label maps by several looks at each image: test-time augmentation."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fcn.bands import Band
from fcn.checkpoint import Model, check_sees_images
from fcn.classes import Classes
from fcn.device import Precision, autocast, find_device
from fcn.errors import BackendError
from fcn.predict import Prediction, check_finite, label_dtype, prediction


class AveragedPredictor:
    """Segments images by the mean of the probabilities over mirrored and scaled views.

    Each view is scored by itself, its scores are brought to the image's own pixels, and the
    probabilities that follow from them are averaged, class by class. Pixel centres stay where
    they are: views are scaled about the image's frame (``align_corners=False``), and the
    scores of a mirrored view are mirrored back.

    Images run one by one and whole; one of 4 million pixels and 21 classes takes a gigabyte
    beside the network. Every view costs what one look costs, times its scale squared.

    Args:
        model: a trained model.
        flip: Look at the mirror image of every view too.
        scales: Sizes of the views, as multiples of the image's; 1.0 is the image itself.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: "auto" is bfloat16 on a GPU and float32 on a CPU.

    Raises:
        BackendError: a quantised model, which torch does not run.
        DeviceError: a device this machine does not have.
        ValueError: no scale, or one that is not above 0; a model of other channels than
            three and its bands.
    """

    def __init__(
        self,
        model: Model,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be one or more numbers above 0, found {scales}")
        check_sees_images(model)
        if model.ranges is not None:
            raise BackendError(
                "a quantised model looks at every image once, as it is; average the looks of the "
                "model that it was made from"
            )
        self.device = find_device(device)
        self.precision: Precision = precision
        self.model = model
        self.net = model.net.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.flip, self.scales = flip, tuple(scales)

    @property
    def classes(self) -> Classes:
        """Classes of the label maps; of several heads, the first one's."""
        return self.model.classes

    @property
    def bands(self) -> tuple[Band, ...]:
        """Bands that images have behind their colours."""
        return self.model.input.bands

    @property
    def further_classes(self) -> Mapping[str, Classes]:
        """Classes of the other heads, by name."""
        return self.model.further_classes

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Label maps ``H x W`` of RGB images uint8 ``H x W x 3``, in their order.

        Of a model of several heads these are the first head's; `predict` gives those of all.
        Images of a model with bands are ``H x W x (3 + B)``, see `fcn.predict`.
        """
        return [prediction.label for prediction in self.predict(images)]

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Label maps and confidences of images, as `__call__` takes them, in their order.

        Raises:
            ScoresNotFinite: the network's numbers overflow at one of the images.
            ValueError: An array that is no such image.
        """
        images = self.model.input.check_images(images)
        return check_finite([self._predict(image) for image in images])

    @torch.inference_mode()
    def _predict(self, image: np.ndarray) -> Prediction:
        probabilities = self._probabilities(image)
        winners = [p.max(dim=0) for p in torch.split(probabilities, self._sizes)]
        labels = [
            winner.indices.cpu().numpy().astype(label_dtype(classes))
            for winner, classes in zip(winners, self.model.all_classes, strict=True)
        ]
        confidences = [float(winner.values.mean(dtype=torch.float64)) for winner in winners]
        return prediction(labels, confidences, self.further_classes)

    @property
    def _sizes(self) -> list[int]:
        """Number of classes of each head."""
        return [len(classes) for classes in self.model.all_classes]

    def _probabilities(self, image: np.ndarray) -> Tensor:
        """Mean probabilities ``C x H x W``, 1 together in every head, of ``H x W x (3 + B)``."""
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        normalised = self.model.input.normalise(pixels)
        total = sum((self._view(normalised, s) for s in self.scales), torch.zeros(()))
        return total / len(self.scales)

    def _view(self, image: Tensor, scale: float) -> Tensor:
        """Probabilities ``C x H x W`` of ``1 x (3 + B) x H x W`` at one scale, mirrored and not."""
        height, width = image.shape[2:]
        view = _resized(image, max(1, round(height * scale)), max(1, round(width * scale)))
        probabilities = self._look(view, height, width)
        if self.flip:
            mirrored = self._look(view.flip(3), height, width).flip(2)
            probabilities = (probabilities + mirrored) / 2
        return probabilities

    def _look(self, view: Tensor, height: int, width: int) -> Tensor:
        with autocast(self.device, self.precision):
            scores = self.net(view)
        parts = torch.split(_resized(scores.float(), height, width)[0], self._sizes)
        return torch.cat([part.softmax(dim=0) for part in parts])


def _resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps ``1 x C x h x w`` on a grid of another size within the same frame."""
    if maps.shape[2:] == (height, width):
        return maps
    return functional.interpolate(
        maps, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
