"""The masks of an output as a dataset for PyTorch: any mask at any time, in any process."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset

from fcn.masks import decode_mask
from tasks import parts, stores
from tasks.part_file import column
from tasks.parts import stored_mask
from tasks.stores import StoreError

CACHED_GROUPS = 4
"""Row groups that each process keeps: about 2 MB each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """A label map and what it belongs to.

    Attributes:
        key: Of the image.
        url: Of the image.
        label: Class ids ``H x W``, uint8, or int32 where there are more than 256 classes.
        confidence: Mean over the pixels of the winning class's probability.
        further: The masks of further heads, by name; label and confidence are the first head's.
    """

    key: str
    url: str
    label: torch.Tensor
    confidence: float
    further: Mapping[str, "Mask"] = field(default_factory=dict)


class Masks(Dataset[Mask]):
    """The newest mask of every key of an output; images that failed are left out.

    ::

        loader = DataLoader(Masks(output_url), batch_size=None, shuffle=True, num_workers=4)

    Label maps differ in size: batches need a ``collate_fn`` of your own, or ``batch_size=None``.
    One mask costs one row group, and its neighbours nothing more. What is pickled for a worker
    is the URL and sixteen bytes a mask: files are opened where they are read.

    Args:
        output_url: Where predict wrote.

    Raises:
        StoreError: no parts there, or they cannot be read.
    """

    def __init__(self, output_url: str) -> None:
        self._output_url = output_url
        places = list(_places(output_url))
        self._places = np.concatenate(places) if places else np.empty((0, 4), np.int32)
        self._groups: OrderedDict[tuple[int, int, int], list[dict[str, Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Mask:
        run, number, group, place = map(int, self._places[index])
        row = self._rows(run, number, group)[place]
        further = {
            name.removeprefix("confidence_"): _mask(row, name.removeprefix("confidence_"))
            for name, confidence in row.items()
            if name.startswith("confidence_") and confidence is not None  # else of another run
        }
        return _mask(row, further=further)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": OrderedDict()}

    def _rows(self, run: int, number: int, group: int) -> list[dict[str, Any]]:
        at = run, number, group
        if at not in self._groups:
            with stores.open_input(parts.part_url(self._output_url, run, number)) as file:
                parquet = pq.ParquetFile(file)
                wanted = ("key", "url", "mask", "confidence")  # and those of further heads
                columns = [name for name in parquet.schema_arrow.names if name.startswith(wanted)]
                self._groups[at] = parquet.read_row_group(group, columns=columns).to_pylist()
            while len(self._groups) > CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(at)
        return self._groups[at]


def _mask(
    row: Mapping[str, Any], head: str = "", further: Mapping[str, Mask] | None = None
) -> Mask:
    """The mask of one head, in a row of a part."""
    label = decode_mask(stored_mask(row, head))
    return Mask(
        key=row["key"],
        url=row["url"],
        label=torch.from_numpy(label.astype(np.int32) if label.dtype == np.uint16 else label),
        confidence=row[column("confidence", head)],
        further=further or {},
    )


def _places(output_url: str) -> Iterator[np.ndarray]:
    """Run, part, row group and row of every mask, int32 ``N x 4``, a part at a time."""
    there = parts.listed(output_url)
    if not there:
        raise StoreError(f"no parts at {stores.redact(output_url)}: no output of predict")
    newer: set[str] = set()
    for run in sorted(there, reverse=True):
        keys: set[str] = set()
        for number in there[run]:
            with stores.open_input(parts.part_url(output_url, run, number)) as file:
                parquet = pq.ParquetFile(file)
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group, columns=["key", "status"])
                    found = list(map(str, table["key"].to_pylist()))
                    rows = [
                        (run, number, group, row)
                        for row, (key, status) in enumerate(
                            zip(found, table["status"].to_pylist(), strict=True)
                        )
                        if status != "failed" and key not in newer
                    ]
                    keys.update(found if len(there) > 1 else ())
                    yield np.array(rows, np.int32).reshape(-1, 4)
        newer |= keys
