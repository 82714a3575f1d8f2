"""What a caller of ``fcn`` may catch.

::

    FcnError
    ├── ImageError            bytes that cannot become an image
    │   ├── EmptyImage        zero bytes
    │   ├── UnsupportedImage  no decoder knows the format
    │   ├── CorruptImage      a known format, damaged
    │   ├── TruncatedImage    a known format, cut short
    │   ├── ImageTooLarge     more pixels than allowed, read from the header
    │   ├── BandError         a band that cannot be decoded, or does not fit its image
    │   │   └── MissingBand   a band that is not there
    │   ├── DecoderCrashed    a decoder, in a process of its own, that died of it
    │   └── DecoderTimedOut   a decoder, in a process of its own, that did not come to an end
    ├── LabelError            a label map that does not fit its classes or its image
    ├── CheckpointError       a model or weights file that cannot be used
    ├── DeviceError           a device that this machine does not have
    ├── BackendError          a runtime that is not installed, or cannot run a model as asked
    ├── ScoresNotFinite       an image of which a network computes infinities or no numbers
    └── TrainingError         training that cannot go on, such as a loss that is not finite

Wrong arguments raise ``ValueError``, as everywhere in Python.
"""


class FcnError(Exception):
    """Base of every error that ``fcn`` raises about data it was given."""


class ImageError(FcnError):
    """Bytes that cannot become an image."""


class EmptyImage(ImageError):
    """An image of zero bytes."""


class UnsupportedImage(ImageError):
    """Bytes in a format that no decoder knows."""


class CorruptImage(ImageError):
    """An image of a known format whose bytes are damaged."""


class TruncatedImage(ImageError):
    """An image of a known format whose bytes end too early."""


class ImageTooLarge(ImageError):
    """An image whose header announces more pixels than allowed."""


class BandError(ImageError):
    """A band that cannot be decoded, or does not fit its image or its model."""


class MissingBand(BandError):
    """An image without a band that a model sees."""


class DecoderCrashed(ImageError):
    """An image whose decoder died, twice, in a process of its own."""


class DecoderTimedOut(ImageError):
    """An image whose decoder, in a process of its own, did not come to an end."""


class LabelError(FcnError):
    """A label map that does not fit its classes or its image."""


class CheckpointError(FcnError):
    """A model or weights file that cannot be used as asked."""


class TrainingError(FcnError):
    """Training that cannot go on, such as a loss that is not finite."""


class ScoresNotFinite(FcnError):
    """An image of which a network computes scores that are no finite numbers."""


class DeviceError(FcnError):
    """A device that this machine does not have."""


class BackendError(FcnError):
    """A runtime that is not installed, or cannot run a model as asked."""
