"""A collection: the images to be segmented, whatever holds them, as pages of entries.

==============================  =============================================================
``collection_url``              its images
==============================  =============================================================
a prefix                        the objects below it that ``include`` names; where there are
                                none, those in its tar and Parquet files
a prefix and a glob             the objects that it matches; of tar and Parquet files those
                                that they hold
one ``.tar`` or ``.parquet``    those that it holds
one ``.csv``, or ``.parquet``   those that it lists, see `tasks.url_lists`
with a column ``url``
any other object                itself
==============================  =============================================================

What is in a tar file counts if ``include`` names it, see `tasks.tar_files`; of a Parquet file
every row counts, see `tasks.parquet_images`. ``exclude`` goes for all: images, and files that
hold or list them. For a model that sees bands, see `tasks.bands`.
"""

import fnmatch
import heapq
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice

import pyarrow as pa

from tasks import bands as image_bands
from tasks import parquet_images, stores, tar_files, url_lists
from tasks.pages import PAGE_ROWS, paged, require_rising, sort, to_page
from tasks.parquet_images import WatchedFile, image_columns, open_parquet
from tasks.stores import Entry, StoreError

READERS = 8
"""Containers whose images are looked up at once."""

Matcher = Callable[[str], bool]


def collect(
    collection_url: str,
    output_url: str,
    *,
    include: Sequence[str],
    exclude: Sequence[str] = (),
    bands: Sequence[str] = (),
) -> Iterator[pa.Table]:
    """The images of a collection, sorted by key and streamed, without this output.

    Args:
        collection_url: A prefix, a prefix and a glob, or one object, see above.
        output_url: Left out where it lies below the collection.
        include: Patterns of images below a prefix or in a tar file.
        exclude: Patterns of what to leave out.
        bands: Names of bands to be found for every image.

    Raises:
        StoreError: the collection does not exist, cannot be listed or is the output itself; a
            name that is no text, a key that is there twice, a container that is damaged or of
            no use, or that holds no bands where these are asked for; also while iterating.
    """
    kind = stores.kind_of(collection_url)
    prefix = stores.split_glob(collection_url)[0] if kind == "glob" else collection_url
    own = _key_below(prefix, output_url)
    if own == "":
        raise StoreError(
            f"output_url and collection_url are both {stores.redact(prefix)}; "
            "give the output a place of its own, which may lie below the collection"
        )
    taken, left_out = _matcher(include), _matcher(exclude)

    def objects() -> Iterator[Entry]:
        for entry in stores.list_entries(collection_url):
            ours = own and entry.key.startswith(f"{own}/")
            if not ours and not left_out(entry.key):
                yield entry

    if kind == "object" and _is_list(collection_url):
        if bands:
            raise image_bands.none_in(collection_url, "a list of URLs", bands)
        return _filtered(url_lists.rows(collection_url), left_out if exclude else None)
    if kind == "prefix":
        images = (entry for entry in objects() if taken(entry.key))
        first = next(images, None)
        if first is not None:
            pages = paged(map(_require_text, chain([first], images)))
        else:
            containers = (entry for entry in objects() if _is_container(entry.key))
            pages = _expanded(containers, taken, left_out, bands)
    else:
        pages = _expanded(objects(), taken, left_out, bands)
    if bands:
        pages = image_bands.find(pages, collection_url, bands)
    return require_rising(pages, stores.redact(collection_url), _name_place)


def _is_container(key: str) -> bool:
    return key.lower().endswith((".tar", ".parquet", *tar_files.COMPRESSED_ENDINGS))


def _is_list(url: str) -> bool:
    """Whether one object lists images that are elsewhere.

    Raises:
        StoreError: a Parquet file that cannot be read, or that may be either.
    """
    if not url.lower().endswith(".parquet"):
        return url.lower().endswith(".csv")
    with stores.open_input(url) as file:
        schema = open_parquet(WatchedFile(file), url).schema_arrow
    images = image_columns(schema)
    if "url" not in schema.names or "image" in images:
        return False
    if images:
        raise StoreError(
            f"{stores.redact(url)} has a column url, and bytes in {', '.join(images)}: it may be "
            "a list or hold the images; name the column of images image, or leave one out"
        )
    return True


def _expanded(
    objects: Iterable[Entry], taken: Matcher, left_out: Matcher, bands: Sequence[str]
) -> Iterator[pa.Table]:
    """Objects as they are, but containers by the images that they hold, in the order of keys."""

    def look_up(chunk: Sequence[Entry]) -> Iterator[pa.Table]:
        if not _is_container(chunk[0].key):
            return iter([to_page(chunk)])
        [found] = chunk
        # as `tasks.reading` will ask for it; a listing may tell another version
        container = replace(found, etag=stores.stat(found.url).etag)
        if container.key.lower().endswith(".parquet"):
            return sort(_filtered(parquet_images.rows(container, bands), left_out))
        if bands:
            raise image_bands.none_in(container.url, "a tar file", bands)
        members = (
            _require_text(member)
            for member in tar_files.members(container)
            if taken(member.key) and not left_out(member.key)
        )
        return sort(paged(members))

    return _map_ahead(look_up, _chunks(_as_folders(map(_require_text, objects))))


def _as_folders(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Containers moved to where their images come: ``x.tar/`` is after ``x.tar-old.jpg``."""
    waiting: list[tuple[str, Entry]] = []
    for entry in entries:
        while waiting and waiting[0][0] < entry.key:
            yield heapq.heappop(waiting)[1]
        if _is_container(entry.key):
            heapq.heappush(waiting, (f"{entry.key}/", entry))
        else:
            yield entry
    while waiting:
        yield heapq.heappop(waiting)[1]


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Containers one by one, and what is between them by the page."""
    chunk: list[Entry] = []
    for entry in entries:
        if chunk and (_is_container(entry.key) or len(chunk) == PAGE_ROWS):
            yield chunk
            chunk = []
        if _is_container(entry.key):
            yield [entry]
        else:
            chunk.append(entry)
    if chunk:
        yield chunk


def _map_ahead(
    look_up: Callable[[Sequence[Entry]], Iterator[pa.Table]], chunks: Iterator[list[Entry]]
) -> Iterator[pa.Table]:
    """The pages of each chunk in order, some being looked up ahead."""
    with ThreadPoolExecutor(READERS) as threads:
        waiting = deque(threads.submit(look_up, chunk) for chunk in islice(chunks, READERS))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(threads.submit(look_up, chunk) for chunk in islice(chunks, 1))


def _filtered(pages: Iterable[pa.Table], left_out: Matcher | None) -> Iterator[pa.Table]:
    for page in pages:
        if left_out is None:
            yield page
        else:
            yield page.filter(pa.array([not left_out(str(key)) for key in page["key"].to_pylist()]))


def _name_place(page: pa.Table, index: int) -> str:
    url, offset = str(page["url"][index]), page["offset"][index].as_py()
    return stores.redact(url) + ("" if offset is None else f" at {offset:,}")


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A function that says whether a key matches one of the patterns."""
    plain: list[str] = []
    whole: list[str] = []
    for pattern in patterns:
        (whole if "/" in pattern else plain).append(fnmatch.translate(pattern))
    names = re.compile("|".join(plain) or r"(?!)", re.IGNORECASE)
    keys = re.compile("|".join(whole) or r"(?!)", re.IGNORECASE)
    return lambda key: bool(names.match(key.rpartition("/")[2]) or keys.match(key))


def _key_below(prefix: str, url: str) -> str | None:
    """The key of ``url`` below ``prefix``, "" for the prefix itself; ``None`` elsewhere."""
    above, place = (
        (str(path) if path else text).rstrip("/")
        for text, path in ((text, stores.local_path(text)) for text in (prefix, url))
    )
    if place == above:
        return ""
    return place.removeprefix(f"{above}/") if place.startswith(f"{above}/") else None


def _require_text(entry: Entry) -> Entry:
    try:
        entry.url.encode()
    except UnicodeEncodeError:
        name = entry.key.encode("utf-8", "backslashreplace").decode()
        raise StoreError(
            f"the file name {name} is no valid UTF-8 and cannot be a key; rename it or leave "
            "it out with an exclude pattern"
        ) from None
    return entry
