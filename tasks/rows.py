"""The row of an image: its mask and what there is to say of it, or why it has none."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fcn.classes import Classes
from fcn.masks import count_labels, encode_mask
from fcn.predict import Prediction
from tasks.part_file import HeadMask, Row
from tasks.predict_config import PredictConfig
from tasks.seconds import Seconds
from tasks.stores import Entry, StoreError, is_transient

MAX_ERROR_TEXT = 500

SaveMask = Callable[..., str]
"""Puts the PNG mask of a key, and as a third argument of a further head, and returns its URL."""

_FULL = {errno.ENOSPC, errno.EDQUOT}


class MaskNotSaved(Exception):
    """A mask that cannot have an object of its own, such as for a name that is too long."""


def failed(entry: Entry, error: Exception, size: tuple[int, int] | None = None) -> Row:
    """The row of an image without a mask; its height and width as far as they are known."""
    height, width = size or (None, None)
    text = str(error).encode("utf-8", "replace").decode()[:MAX_ERROR_TEXT]
    return Row(
        entry=entry,
        status="failed",
        height=height,
        width=width,
        error_class=type(error).__name__,
        error=text or type(error).__name__,
    )


@dataclass(frozen=True)
class Encoder:
    """From predictions to rows; for use from many threads.

    Attributes:
        classes: Of the first head.
        further_classes: Of the others, by name.
        config: Settings of the run.
        seconds: Gets the time added.
        save_mask: Puts the PNG mask of a key where the png sink wants it.
    """

    classes: Classes
    further_classes: Mapping[str, Classes]
    config: PredictConfig
    seconds: Seconds
    save_mask: SaveMask | None

    def row(self, entry: Entry, prediction: Prediction, *, truncated: bool) -> Row:
        """The row of an image with a mask.

        Raises:
            MaskNotSaved: its mask cannot have an object of its own.
            StoreError: masks cannot be saved for now, or the disk is full.
        """
        try:
            first = self._mask(entry.key, prediction, self.classes)
            further = {
                name: self._mask(entry.key, prediction.further[name], classes, name)
                for name, classes in self.further_classes.items()
            }
        except StoreError as error:
            if is_transient(error) or getattr(error.__cause__, "errno", None) in _FULL:
                raise
            raise MaskNotSaved(str(error)) from error
        return Row(
            entry=entry,
            status="partial" if truncated else "ok",
            height=prediction.label.shape[0],
            width=prediction.label.shape[1],
            further=further,
            **vars(first),
        )

    def _mask(self, key: str, prediction: Prediction, classes: Classes, *head: str) -> HeadMask:
        """The mask of one head, whose name is given unless it is the first.

        Raises:
            StoreError: it cannot be put where the png sink wants it.
        """
        label, mask_format = prediction.label, self.config.mask_format
        with self.seconds.measure("encode"):
            mask = encode_mask(label, classes.palette, mask_format=mask_format)
            counts = count_labels(label, len(classes))
        mask_path = f"{key}.png" if mask_format == "png" else None
        if self.save_mask:
            png = mask if mask_format == "png" else encode_mask(label, classes.palette)
            with self.seconds.measure("write"):
                mask_path = self.save_mask(key, png, *head)
        return HeadMask(
            mask=mask if "parquet" in self.config.sinks else None,
            mask_path=mask_path,
            class_pixels=counts,
            confidence=prediction.confidence,
        )
