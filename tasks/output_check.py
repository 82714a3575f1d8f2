"""What is wrong with a prediction's output: its files against each other, and every mask.

What each file says about the others is compared: manifests fix keys and shards, a part's card
holds the digest of its bytes, the index repeats the cards, and a row tells the size and the
histogram of its mask. Everything is streamed: memory holds the keys of one shard, one row
group, and a page of the manifest of every run.
"""

import heapq
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from tasks import manifest as manifests
from tasks import parts, stores
from tasks.findings import Finding, Seen
from tasks.manifest import Manifest
from tasks.part_check import PartCheck
from tasks.part_file import Part
from tasks.stores import StoreError

_THREADS = 4
_LEFT_BY_A_KILLED_WRITER = re.compile(r"(.*/)?\.[0-9a-f]{32}\.tmp")


def check_output(output_url: str, seen: Seen) -> Iterator[Finding]:
    """Every finding of an output.

    Args:
        output_url: Where predict wrote.
        seen: Counts what was checked; up to date whenever a finding comes.

    Raises:
        StoreError: no output of predict is there, or its store cannot be read.
    """
    there = parts.listed(output_url)
    numbers = manifests.runs(output_url)
    if not numbers and not there:
        raise StoreError(f"no manifest and no parts at {stores.redact(output_url)}: no output")
    runs: dict[int, Manifest] = {}
    for run in numbers:
        try:
            runs[run] = manifests.read(output_url, run)
        except StoreError as error:
            yield Finding(kind="manifest", place=manifests.manifest_name(run), text=str(error))
    yield from _foreign_files(output_url, runs)
    yield from _missing(runs, there)
    with ThreadPoolExecutor(_THREADS) as threads:
        for run, manifest in runs.items():
            newer = _keys([runs[other] for other in runs if other > run], there)
            numbers = [number for number in there.get(run, ()) if number < manifest.num_shards]
            marked = _marked(_keys_of(manifest, numbers), newer)
            checked = replace(manifest)  # pages that it keeps go with it, not with `runs`
            for number in numbers:
                images = manifest.num_images(number)
                is_newest = [not is_newer for _, is_newer in islice(marked, images)]
                yield from PartCheck(checked, number, seen, threads, is_newest).findings()
    if runs:
        yield from _check_index(output_url, runs[max(runs)], there, seen.cards)


def _foreign_files(output_url: str, runs: Mapping[int, Manifest]) -> Iterator[Finding]:
    """Files among the parts that no manifest knows."""
    folder = stores.join(output_url, "parts")
    if not stores.exists(folder):
        return
    for entry in stores.list_entries(f"{folder}/"):
        place = parts.place_of(entry.key)
        if place is None and _LEFT_BY_A_KILLED_WRITER.fullmatch(entry.key):
            continue
        if place is None:
            text = "no name of a part"
        elif place[0] not in runs:
            text = f"a part of run {place[0]}, of which there is no readable manifest"
        elif place[1] >= runs[place[0]].num_shards:
            text = f"part {place[1]} of a run of {runs[place[0]].num_shards} shards"
        else:
            continue
        yield Finding(kind="foreign file", place=f"parts/{entry.key}", text=text)


def _missing(runs: Mapping[int, Manifest], there: Mapping[int, list[int]]) -> Iterator[Finding]:
    """Parts of the newest run, and rows of older ones that no other run has done instead."""
    for run, manifest in runs.items():
        done = set(there.get(run, ()))
        missing = [number for number in range(manifest.num_shards) if number not in done]
        older = [other for other in {*runs, *there} if other < run]
        place = f"run {run:05d}"
        if run == max(runs) and manifest.card.merged and older:
            yield Finding(
                kind="cut off",
                place=place,
                text=f"compact has not finished: {len(missing):,} of {manifest.num_shards:,} parts "
                f"are to be written, and {len(older):,} older runs are still there",
            )
        elif run == max(runs):
            for number in missing:
                yield Finding(
                    kind="missing part",
                    place=parts.part_name(run, number),
                    text=f"not there; {manifest.num_images(number):,} images have no row",
                )
        elif missing:
            elsewhere = _keys([other for other in runs.values() if other is not manifest], there)
            wanted = _keys_of(manifest, missing)
            lost, first = 0, ""
            for key, is_done in _marked(wanted, elsewhere):
                lost, first = lost + (not is_done), first or ("" if is_done else key)
            if lost:
                yield Finding(
                    kind="missing row",
                    place=place,
                    text=f"{len(missing):,} of {manifest.num_shards:,} parts are not there, and "
                    f"{lost:,} of their images have no row in any run; first: {first}",
                )


def _keys_of(manifest: Manifest, numbers: Iterable[int]) -> Iterator[str]:
    """The keys of some shards, in order: one pass over the manifest."""
    wanted = set(numbers)
    for index, entry in enumerate(manifest.entries() if wanted else ()):
        if index // manifest.card.images_per_shard in wanted:
            yield entry.key


def _keys(runs: Sequence[Manifest], there: Mapping[int, list[int]]) -> Iterator[str]:
    """The keys that have a part in any of the runs, sorted."""
    return heapq.merge(*(_keys_of(run, there.get(run.card.run, ())) for run in runs))


def _marked(keys: Iterable[str], others: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Each key, and whether it is among the others: both sorted, one of each in memory."""
    other = next(others, None)
    for key in keys:
        while other is not None and other < key:
            other = next(others, None)
        yield key, other == key


def _check_index(
    output_url: str, newest: Manifest, there: Mapping[int, list[int]], cards: Sequence[Part]
) -> Iterator[Finding]:
    """How the index differs from what it would be if it were written now."""
    url = stores.join(output_url, parts.INDEX_NAME)
    if not stores.exists(url):
        yield Finding(kind="index", place=parts.INDEX_NAME, text="not there")
        return
    try:
        found = json.loads(stores.read_bytes(url))
        named = {row["path"]: row for row in found["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        yield Finding(kind="index", place=parts.INDEX_NAME, text=f"no index of ours: {error!r}")
        return
    files = {parts.part_name(run, number) for run, numbers in there.items() for number in numbers}
    texts = [f"names {path}, which is not there" for path in sorted(named.keys() - files)]
    texts += [f"does not name {path}" for path in sorted(files - named.keys())]
    model = newest.card.model
    expected = parts.index_of(cards, model.label_classes(), model.further_label_classes())
    for row in expected.pop("parts"):
        if row["path"] in named and named[row["path"]] != row:
            texts.append(f"says of {row['path']} what its card does not say")
    if not texts and len(cards) == len(files):  # else the sums cannot be known
        texts = [
            f"{name} is {found.get(name)!r}; expected {value!r}"
            for name, value in expected.items()
            if found.get(name) != value
        ]
    for text in texts:
        yield Finding(kind="index", place=parts.INDEX_NAME, text=text)
