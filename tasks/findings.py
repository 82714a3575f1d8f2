"""What can be wrong with a prediction's output, and what to do about each kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tasks.part_file import Part

Kind = Literal[
    "manifest", "foreign file", "missing part", "missing row", "cut off", "unreadable part",
    "checksum", "misplaced part", "schema", "rows", "card", "row", "mask", "mask object", "index",
]  # fmt: skip

_REDO = "remove the part and _index.json, then run predict again: its images are segmented anew"

NEXT_STEPS: Mapping[Kind, str] = {
    "manifest": "restore the manifest from a copy, or predict into a new place",
    "foreign file": "move it elsewhere: readers of parts/**/*.parquet may take it for a part",
    "missing part": "remove _index.json and run predict again: it segments what is missing",
    "missing row": "run predict again; images that are gone from the collection have no row: "
    "compact then drops the run that was cut off",
    "cut off": "run compact again: it goes on where it was cut off",
    "unreadable part": _REDO,
    "checksum": _REDO,
    "misplaced part": _REDO,
    "schema": _REDO,
    "rows": _REDO,
    "card": _REDO,
    "row": _REDO,
    "mask": _REDO,
    "mask object": _REDO,
    "index": "remove _index.json and run predict again: it is written anew from the parts",
}
"""What to do about a finding, by its kind."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it was written.

    Attributes:
        kind: what sort of thing, a key of `NEXT_STEPS`.
        place: file below the output, and row where it is about one.
        text: what was found and what was expected.
    """

    kind: Kind
    place: str
    text: str


@dataclass(kw_only=True)
class Seen:
    """What a check has gone through."""

    rows: int = 0
    masks: int = 0
    cards: list[Part] = field(default_factory=list)
