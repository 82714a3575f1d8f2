"""Damaged files in every format end as rows, and cost their neighbours nothing."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.hostile import hostile_files, peak_memory, rows_of, valid_files
from fcn.masks import decode_mask


@pytest.mark.parametrize("lenient", [False, True])
def test_hostile_files_become_one_row_each(lenient: bool, tmp_path: Path) -> None:
    files = dict(hostile_files(216, seed=1 + lenient))
    good = {f"good-{name}": data for name, data in valid_files(np.random.default_rng(0)).items()}

    rows = {row.entry.key: row for row in rows_of(files | good, tmp_path, lenient=lenient)}

    assert rows.keys() == files.keys() | good.keys()
    assert {key: row.error for key, row in rows.items() if key in good and row.error} == {}
    statuses = {rows[key].status for key in files}
    assert statuses == ({"ok", "partial", "failed"} if lenient else {"ok", "failed"})
    for key in files:
        row = rows[key]
        if row.status == "failed":
            assert row.error_class
            assert row.error
            assert "\n" not in row.error
            assert row.mask is None
        else:
            assert row.mask is not None
            assert decode_mask(row.mask).shape == (row.height, row.width)


def test_decoding_processes_stay_small(tmp_path: Path) -> None:
    """What a header announces is not what a decoder gets."""
    rows_of(dict(hostile_files(72, seed=3)), tmp_path)
    assert 0 < max(peak_memory()) < 400 << 20
