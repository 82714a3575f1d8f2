"""Masks of an output for PyTorch: the newest of each key, in any order, in any process."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fcn.masks import encode_mask
from tasks import stores
from tasks.masks import Masks
from tasks.stores import StoreError
from tests.tasks.test_parts import commit, failed, row


def label_of(number: int) -> np.ndarray:
    return np.full((2, 3), number % 3, np.uint8)


@pytest.fixture
def output(tmp_path: Path) -> str:
    """1,100 masks in three row groups, one of them done again and one that failed."""
    url = str(tmp_path / "out")
    rows = [row(f"{number:04d}", mask=encode_mask(label_of(number))) for number in range(1100)]
    commit(url, [*rows[:700], failed("0700x")])
    commit(url, rows[700:], number=1)
    commit(url, [row("0007", mask=encode_mask(label_of(2)))], run=1)
    return url


def test_every_key_with_a_mask_is_there_once_and_the_newest_one(output: str) -> None:
    masks = Masks(output)
    by_key = {mask.key: mask for mask in masks}
    assert len(masks) == len(by_key) == 1100
    for number in (0, 499, 500, 699, 700, 1099):
        assert by_key[f"{number:04d}"].label.tolist() == label_of(number).tolist()
    assert by_key["0007"].label.unique().tolist() == [2]
    assert by_key["0007"].url == "memory://c/0007"
    assert by_key["0007"].confidence == 0.75


def test_random_access_reads_few_row_groups(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = stores.open_input
    masks = Masks(output)
    monkeypatch.setattr(stores, "open_input", lambda url: opened.append(url) or original(url))
    for index in (900, 901, 902, 950):
        masks[index]
    assert len(opened) == 1


@pytest.mark.slow
def test_spawned_workers_read_what_this_process_reads(output: str) -> None:
    masks = Masks(output)
    masks[0]  # what is cached here does not travel
    assert len(pickle.dumps(masks)) < 16 * len(masks) + 2000
    loader: Any = DataLoader(
        masks, batch_size=None, sampler=[3, 1099, 7], num_workers=1, multiprocessing_context="spawn"
    )
    assert [mask.key for mask in loader] == [masks[index].key for index in (3, 1099, 7)]


def test_many_classes_are_int32_and_run_lengths_are_read(tmp_path: Path) -> None:
    label = np.array([[0, 300]], np.uint16)
    mask = encode_mask(label, mask_format="rle")
    commit(str(tmp_path), [row("a", mask=mask, mask_path=None)], mask_format="rle")
    [one] = Masks(str(tmp_path))
    assert one.label.dtype == torch.int32
    assert one.label.tolist() == [[0, 300]]


def test_masks_in_objects_of_their_own_are_read(tmp_path: Path) -> None:
    url = f"{tmp_path}/masks/a.png"
    stores.write_bytes(url, encode_mask(label_of(1)))
    commit(str(tmp_path), [row("a", mask=None, mask_path=url)])
    assert Masks(str(tmp_path))[0].label.unique().tolist() == [1]


def test_place_without_parts_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no parts at"):
        Masks(str(tmp_path))
