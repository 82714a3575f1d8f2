"""Where the classes of a source come from: a list, a file of names, its layout, or its masks.

::

    classes.txt     a name per line
    classes.csv     columns name, and if wanted value (or id), and r, g, b or colour (#804000)
    classes.json    ["sky", …], {"sky": [128, 128, 128], …}, or objects with name, value, colour

``value`` is the class's value in gray and palette masks (its place in the file where not
given), ``colour`` the one in coloured masks.
"""

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fcn.classes import IGNORE_INDEX, Colour
from tasks import stores
from tasks.dataset import DatasetError
from tasks.labels import ClassRow, ClassTable, make_table
from tasks.layouts import Source

CAMVID_NAMES = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
    *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
"""Classes of CamVid in the SegNet tutorial; value 11 is void there."""

CAMVID_VOID = 11

VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""Classes of PASCAL VOC; value 255 is void there."""

_LAYOUT_NAMES = {"camvid": CAMVID_NAMES, "voc": VOC_NAMES}


def find_classes(
    source: Source,
    classes: Sequence[str] | str | None = None,
    ignore_values: Sequence[int] | None = None,
) -> ClassTable | None:
    """The classes of a source: those given, of its own file, or of its layout.

    Args:
        source: From `tasks.layouts.find_samples`.
        classes: Names in the order of their ids; or the URL of a class file.
        ignore_values: Mask values that become 255; by default 11 in CamVid folders with
            eleven classes.

    Returns:
        ``None`` for plain folders that name no classes.

    Raises:
        DatasetError: a class file that cannot be used.
        StoreError: a class file that cannot be read.
    """
    url = classes if isinstance(classes, str) else source.class_file_url
    if classes is not None and not isinstance(classes, str):
        rows, origin = [ClassRow(name=name) for name in classes], "the names given"
    elif url is not None:
        rows, origin = read_class_file(url), stores.redact(url)
    elif source.layout in _LAYOUT_NAMES:
        rows = [ClassRow(name=name) for name in _LAYOUT_NAMES[source.layout]]
        origin = f"layout {source.layout}"
    else:
        return None
    if ignore_values is None:
        known = source.layout == "camvid" and len(rows) == len(CAMVID_NAMES)
        ignore_values = [CAMVID_VOID] if known else []
    return make_table(rows, ignore_values, origin)


def find_further_classes(
    source: Source, ignore_values: Sequence[int] | None = None
) -> dict[str, ClassTable | None]:
    """The classes of further heads, by name: of their own files; ``None`` where there is none.

    Raises:
        DatasetError: a class file that cannot be used.
        StoreError: a class file that cannot be read.
    """
    return {
        head: None
        if url is None
        else make_table(read_class_file(url), ignore_values or (), stores.redact(url))
        for head, url in source.further_class_files.items()
    }


def derive_classes(
    values: Collection[int], ignore_values: Sequence[int] | None = None
) -> ClassTable:
    """Classes named after the values that masks hold: 0 to the largest, less ignored ones.

    Raises:
        DatasetError: values that make no sense as classes: one only, or few and far between.
    """
    ignored = {IGNORE_INDEX, *(ignore_values or ())}
    kept = sorted(set(values) - ignored)
    shown = ", ".join(map(str, sorted(values)[:8])) + (", …" if len(values) > 8 else "")
    if len(kept) < 2 or kept[-1] >= 2 * len(kept):
        ignoring = f" ({', '.join(map(str, sorted(ignored)))} is ignored)"
        raise DatasetError(
            f"masks hold the values {shown or 'none'}{ignoring}; that does not tell the classes. "
            "Give classes as names in the order of their values, or as the URL of a class file "
            "with columns name and value"
        )
    rows = [
        ClassRow(name=f"class {value}", value=value)
        for value in range(kept[-1] + 1)
        if value not in ignored
    ]
    return make_table(rows, ignore_values or (), "the values of the masks")


def read_class_file(url: str) -> list[ClassRow]:
    """The classes of a ``.txt``, ``.csv`` or ``.json`` file, in its order.

    Raises:
        DatasetError: another extension, or contents of another form.
        StoreError: the file cannot be read.
    """
    place, extension = stores.redact(url), stores.redact(url).rpartition(".")[2].lower()
    parse = {"txt": _parse_text, "csv": _parse_csv, "json": _parse_json}.get(extension)
    if parse is None:
        raise DatasetError(
            f"classes {place!r} is no .txt, .csv or .json file; give its URL, or a list of names"
        )
    try:
        return parse(stores.read_bytes(url).decode("utf-8-sig"))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"{place} cannot be read as classes ({type(error).__name__}: {error}); expected "
            + {
                "txt": "a name per line",
                "csv": "columns name, and if wanted value, and r, g, b or colour (#804000)",
                "json": 'a list of names, {"name": [r, g, b]}, or objects with name, value, colour',
            }[extension]
        ) from error


def _parse_text(text: str) -> list[ClassRow]:
    return [ClassRow(name=line.strip()) for line in text.splitlines() if line.strip()]


def _parse_csv(text: str) -> list[ClassRow]:
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    columns = [name.strip().lower() for name in next(reader, [])]
    if "name" not in columns:
        raise ValueError(f"columns are {', '.join(columns) or 'none'}")
    try:
        return [_row(dict(zip(columns, line, strict=True))) for line in reader if line]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _parse_json(text: str) -> list[ClassRow]:
    content = json.loads(text)
    if isinstance(content, dict):
        content = [{"name": name, "colour": colour} for name, colour in content.items()]
    return [_row({"name": row} if isinstance(row, str) else row) for row in content]


def _row(fields: Mapping[str, Any]) -> ClassRow:
    value = fields.get("value", fields.get("id"))
    colour = fields.get("colour", fields.get("color"))
    if colour is None and {"r", "g", "b"} <= fields.keys():
        colour = [fields[name] for name in "rgb"]
    return ClassRow(
        name=str(fields["name"]).strip(),
        value=None if value in (None, "") else int(value),
        colour=_colour(colour) if colour else None,
    )


def _colour(given: Any) -> Colour:
    parts = bytes.fromhex(given.strip().lstrip("#")) if isinstance(given, str) else given
    red, green, blue = (int(part) for part in parts)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"colour {given} has parts outside 0..255")
    return red, green, blue
