"""What an output of predict holds, and how it differs from another of the same run."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow.parquet as pq

import fcn
from tasks import parts, stores
from tasks.reading import read_objects
from tasks.shards import mask_url


@dataclass(frozen=True)
class Output:
    """What an output holds.

    Attributes:
        files: digest of the bytes of every file or object, by its name below the output.
        rows: digests of the rows of every key, label map included, as a plain reader of
            ``parts/**/*.parquet`` finds them: one of each key is the promise.
        unlike: keys whose PNG object has another label map than their row.
        num_remains: temporary files of writers that were killed.
    """

    files: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)
    unlike: list[str] = field(default_factory=list)
    num_remains: int = 0


def read_output(output_url: str) -> Output:
    """Every file, row and mask of an output, on any store.

    Raises:
        StoreError: it cannot be listed.
        ReadError: a file of it cannot be read.
    """
    entries = list(stores.list_entries(f"{output_url}/"))
    whole = [entry for entry in entries if not entry.key.endswith(".tmp")]
    data = {}
    for entry, found in zip(whole, read_objects(whole), strict=True):
        if not isinstance(found, bytes):
            raise found
        data[entry.key] = found
    output = Output(
        files={name: hashlib.sha256(found).hexdigest() for name, found in data.items()},
        num_remains=len(entries) - len(whole),
    )
    for name in filter(is_part, data):
        for row in pq.read_table(io.BytesIO(data[name])).to_pylist():
            key, mask = str(row["key"]), row.pop("mask")
            label = mask and _label(mask["bytes"])
            text = repr((sorted(row.items()), mask and mask["path"], label))
            output.rows.setdefault(key, []).append(hashlib.sha256(text.encode()).hexdigest())
            png = data.get(mask_url(output_url, key).removeprefix(f"{output_url}/"))
            if label != (png and _label(png)):
                output.unlike.append(key)
    return output


def is_part(name: str) -> bool:
    """Whether this is the name of a part, below its output."""
    return name.startswith("parts/") and parts.place_of(name.removeprefix("parts/")) is not None


def faults(output: Output, keys: Iterable[str]) -> Iterator[str]:
    """What breaks the promise of one row for each key, with the mask of its PNG object."""
    wanted = set(keys)
    for key in sorted(wanted | output.rows.keys()):
        number = len(output.rows.get(key, ()))
        if number != (key in wanted):
            yield f"row {key}: there are {number}"
    yield from (f"mask {key}: another one in its PNG object" for key in output.unlike)


def differences(output: Output, undisturbed: Output) -> Iterator[str]:
    """Files and rows of an output that are unlike those of the undisturbed one."""
    for what, found, wanted in (
        ("file", output.files, undisturbed.files),
        ("row", output.rows, undisturbed.rows),
    ):
        for name in sorted(found.keys() | wanted.keys()):
            if name not in found:
                yield f"{what} {name}: missing"
            elif name not in wanted:
                yield f"{what} {name}: not in the undisturbed output"
            elif found[name] != wanted[name]:
                yield f"{what} {name}: unlike the undisturbed output's"


def _label(mask: bytes) -> str:
    """The label map of a mask, or why there is none."""
    try:
        label = fcn.decode_mask(mask)
    except fcn.FcnError as error:
        return repr(error)
    return f"{label.shape} {label.dtype} {hashlib.sha256(label.tobytes()).hexdigest()}"
