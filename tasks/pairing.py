"""Which mask belongs to which image, and which of them to train and to val."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from tasks.dataset import Finding
from tasks.stores import Entry

_MASK_SUFFIXES = ("_mask", "_label", "_gt", "_L")

Files = Mapping[str, list[Entry]]
"""Files by key: several where their names differ in nothing but the extension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An image and its mask, by path inside the source and by URL.

    ``further`` are path and URL of the masks of further heads, by name, where it has one;
    ``bands`` those of its bands.
    """

    key: str
    split: str
    image_path: str
    mask_path: str
    image_url: str
    mask_url: str
    further: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    bands: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files to pair. ``keys``: those that a list asks for, else all; no split: to be seeded.

    ``further``: masks of further heads, by name; ``bands``: files of bands, by name.
    """

    images: Files
    masks: Files
    split: str = ""
    keys: Collection[str] | None = None
    further: Mapping[str, Files] = field(default_factory=dict)
    bands: Mapping[str, Files] = field(default_factory=dict)


def pair_files(found: Found) -> tuple[list[Pair], list[Finding]]:
    """The pairs in the order of their keys, and a finding per key without one.

    An image needs no mask of a further head; how many have none is a warning. It needs every
    band.
    """
    masks = _by_key(found.masks, found.images)
    further = {head: _by_key(files, found.images) for head, files in found.further.items()}
    keys = sorted(
        found.images.keys() | masks.keys() | set().union(*further.values(), *found.bands.values())
        if found.keys is None
        else found.keys
    )
    if found.split and keys and not any(masks.get(key) for key in keys):
        return [], [_unlabelled(found.split, len(keys))]
    pairs, findings = [], []
    for key in keys:
        image_files, mask_files = found.images.get(key, []), masks.get(key, [])
        others = {head: files[key] for head, files in further.items() if key in files}
        bands = {name: files.get(key, []) for name, files in found.bands.items()}
        wrong = _wrong_bands(key, found.split, image_files, bands)
        if wrong:
            findings += wrong
        elif all(len(files) == 1 for files in (image_files, mask_files, *others.values())):
            of_heads = {head: files[0] for head, files in others.items()}
            of_bands = {name: files[0] for name, files in bands.items()}
            pairs.append(
                _make_pair(key, found.split, image_files[0], mask_files[0], of_heads, of_bands)
            )
        else:
            if mask_files or not image_files:
                mask_files = [*mask_files, *(entry for files in others.values() for entry in files)]
            findings.append(_unpaired(key, found.split, image_files, mask_files))
    for head in further:
        count = sum(head not in pair.further for pair in pairs)
        findings += [_not_labelled_for(head, found.split, count)] * (count > 0)
    return pairs, findings


def _by_key(masks: Files, images: Files) -> dict[str, list[Entry]]:
    """Masks by the key of their image."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for name, entries in masks.items():
        found[_mask_key(name, images)] += entries
    return dict(found)


def _mask_key(name: str, images: Files) -> str:
    """The key of a mask: its name, or its name less a suffix where only that is an image."""
    stems = (name.removesuffix(suffix) for suffix in ("", *_MASK_SUFFIXES))
    return next((stem for stem in stems if stem in images), name)


def _make_pair(
    key: str,
    split: str,
    image: Entry,
    mask: Entry,
    further: Mapping[str, Entry],
    bands: Mapping[str, Entry],
) -> Pair:
    return Pair(
        key=key,
        split=split,
        image_path=image.key,
        mask_path=mask.key,
        image_url=image.url,
        mask_url=mask.url,
        further={head: (entry.key, entry.url) for head, entry in further.items()},
        bands={name: (entry.key, entry.url) for name, entry in bands.items()},
    )


def _wrong_bands(
    key: str, split: str, images: list[Entry], bands: Mapping[str, list[Entry]]
) -> list[Finding]:
    """Findings about bands without an image, images without a band, and bands of one name."""

    def finding(kind: str, file: str, text: str) -> Finding:
        return Finding(kind=kind, severity="error", text=text, file=file, key=key, split=split)

    if not images:
        there = [entry.key for files in bands.values() for entry in files]
        return [finding("band_without_image", path, f"no image for {path}") for path in there]
    wrong = []
    for name, files in bands.items():
        if not files:
            text = f"no band {name} for {images[0].key}"
            wrong.append(finding("missing_band", images[0].key, text))
        elif len(files) > 1:
            paths = " and ".join(entry.key for entry in files)
            text = f"{key} is the name of {paths}"
            wrong.append(finding("ambiguous_name", files[0].key, text))
    return wrong


def _unpaired(key: str, split: str, images: list[Entry], masks: list[Entry]) -> Finding:
    paths = [entry.key for entry in (*images, *masks)]
    if not paths:
        kind, text = "missing_file", f"{key} is listed in {split} but has neither image nor mask"
    elif not masks:
        kind, text = "image_without_mask", f"no mask for {paths[0]}"
    elif not images:
        kind, text = "mask_without_image", f"no image for {paths[0]}"
    else:
        kind, text = "ambiguous_name", f"{key} is the name of {' and '.join(paths)}"
    return Finding(
        kind=kind,
        severity="error",
        text=text,
        count=max(1, len(paths)),
        file=paths[0] if paths else key,
        key=key,
        split=split,
    )


def _not_labelled_for(head: str, split: str, count: int) -> Finding:
    place = f" of split {split}" if split else ""
    text = f"{count:,} images{place} have no mask of head {head}: not labelled for it"
    return Finding(kind="unlabelled_head", severity="warning", text=text, count=count, split=split)


def _unlabelled(split: str, count: int) -> Finding:
    text = f"no image of split {split} has a mask; its {count:,} images are left out"
    return Finding(kind="unlabelled_split", severity="warning", text=text, count=count, split=split)


def seeded_split(pairs: list[Pair], val_fraction: float, seed: int) -> list[Pair]:
    """The pairs as train and val: those whose digest of seed and key comes first are val."""

    def rank(pair: Pair) -> bytes:
        return hashlib.sha256(f"{seed}/{pair.key}".encode()).digest()

    num_val = min(max(1, round(len(pairs) * val_fraction)), len(pairs) - 1) if val_fraction else 0
    val = {pair.key for pair in sorted(pairs, key=rank)[:num_val]}
    return [replace(pair, split="val" if pair.key in val else "train") for pair in pairs]
