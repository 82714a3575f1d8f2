"""Files that say which image belongs to which split.

::

    train.txt, val.txt, test.txt    a key per line
    splits.csv                      columns key (or image, file) and split
    splits.json                     {"train": [keys], "val": [keys]}

A key may be written with its extension and with the folder of the images before it, and
a line may name its mask after the image, as the lists of other programs do.
"""

import csv
import json
from collections.abc import Collection, Iterator, Mapping

from tasks import stores
from tasks.dataset import DatasetError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits and folders of splits, and what they are called here."""

Lists = dict[str, list[str]]
"""Entries by split, as written."""


def read_lists(urls: Mapping[str, str]) -> Lists:
    """Lists with one entry per line, by split, from their URLs by split.

    Raises:
        DatasetError: a file that is not text.
    """
    return {split: [line for line in _lines(url) if line] for split, url in urls.items()}


def read_csv(url: str) -> Lists:
    """A table of entries and their splits.

    Raises:
        DatasetError: columns missing, an unknown split, or a line that is no row of a table.
    """
    reader = csv.reader(_lines(url))
    lists: Lists = {}
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        named = next((name for name in ("key", "image", "file") if name in columns), None)
        if named is None or "split" not in columns:
            raise DatasetError(
                f"{stores.redact(url)} has columns {', '.join(columns) or 'none'}; "
                "expected key (or image, or file) and split"
            )
        for row in filter(None, reader):
            fields = dict(zip(columns, map(str.strip, row), strict=False))
            split = _split_name(fields.get("split", ""), url, reader.line_num)
            lists.setdefault(split, []).append(_entry(fields.get(named, ""), url, reader.line_num))
    except csv.Error as error:
        raise DatasetError(
            f"{_place(url, reader.line_num)} is no row of a table: {error}"
        ) from error
    return lists


def read_json(url: str) -> Lists:
    """A mapping of splits to entries.

    Raises:
        DatasetError: not such a mapping, or an unknown split.
    """
    expected = f'{stores.redact(url)} must hold {{"train": [keys], "val": [keys]}}: '
    try:
        content = json.loads("\n".join(_lines(url)))
    except ValueError as error:
        raise DatasetError(f"{expected}{error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{expected}found {_shown(content)}")
    for name, keys in content.items():
        if not isinstance(keys, list):
            raise DatasetError(f"{expected}{name!r} is {_shown(keys)}")
        for number, key in enumerate(keys):
            if not isinstance(key, str) or not key.strip():
                raise DatasetError(f"{expected}key {number} of {name!r} is {_shown(key)}")
    return {_split_name(name, url): keys for name, keys in content.items()}


def resolve(entries: Collection[str], keys: Collection[str], folder: str) -> Iterator[str]:
    """The key that each entry of a list means; an entry that means none stays as it is."""
    for entry in entries:
        meanings = (
            key
            for text in (entry, entry.split()[0])
            for name in (text.removeprefix("./").removeprefix(f"{folder}/"),)
            for key in (name, without_extension(name))
        )
        yield next((key for key in meanings if key in keys), entry)


def without_extension(name: str) -> str:
    """``a/b.c.png`` as ``a/b.c``."""
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.rpartition(".")
    return f"{folder}{slash}{stem}" if dot else name


def _lines(url: str) -> list[str]:
    try:
        text = stores.read_bytes(url).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{stores.redact(url)} is no UTF-8 text: {error}") from error
    return [line.strip() for line in text.splitlines()]


def _split_name(name: str, url: str, line: int | None = None) -> str:
    if name.lower() not in SPLIT_NAMES:
        raise DatasetError(
            f"{_place(url, line)} names the split {name!r}; expected train, val or test"
        )
    return SPLIT_NAMES[name.lower()]


def _entry(entry: str, url: str, line: int) -> str:
    if not entry:
        raise DatasetError(f"{_place(url, line)} names no image; expected a key and its split")
    return entry


def _place(url: str, line: int | None) -> str:
    return stores.redact(url) + (f", line {line}," if line else "")


def _shown(value: object) -> str:
    """The beginning of a JSON value."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
