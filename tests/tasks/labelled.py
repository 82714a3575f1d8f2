"""A small labelled dataset at a URL, for tests that train on one."""

import numpy as np

from fcn.masks import decode_mask
from tasks.dataset import DatasetInfo
from tasks.staging import Row, Staging
from tests.fcn.scenes import CLASSES, Pair, squares


def make_dataset(url: str, *, num_train: int = 8, num_val: int = 3) -> DatasetInfo:
    """Squares on dark ground, in the splits train and val."""
    with Staging(CLASSES) as staging:
        for split, count, seed in (("train", num_train, 0), ("val", num_val, 1)):
            for index, pair in enumerate(squares(count, seed=seed)):
                staging.add(split, _row(f"{split}-{index:03d}", pair))
        info, _ = staging.publish(url, source="squares", audit=[], settings={}, overwrite=False)
    return info


def _row(key: str, pair: Pair) -> Row:
    label = decode_mask(pair.label)
    height, width = label.shape
    return Row(
        key=key,
        image=pair.image,
        image_path=f"{key}.png",
        label=pair.label,
        height=height,
        width=width,
        pixels=np.array([(label == value).sum() for value in (0, 1, 255)]),
    )
