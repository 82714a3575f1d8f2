"""Where the bands of a collection's images are, and their bytes (`fcn.bands`).

A band is a file beside the image: the collection ``labelled/images`` has the band depth in
``labelled/bands-depth/``, under the same key but for the extension (``.png``, ``.tif``, ``.tiff``,
in this order). The folder of a collection is its prefix; of a glob, the folders before its first
wildcard; of one object, the folder that it is in. Images inside Parquet files have their bands in
columns ``band_NAME`` of the same rows, such as those of a dataset. Tar files and lists of URLs hold
none.

The files of an image's bands are written into its row of the manifest, as JSON: by the name of the
band, URL, size and etag. So a band that changes is a change of the image, and so is one that is
there no longer or at last.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc

from fcn.bands import EXTENSIONS, Band, decode_stacked
from fcn.decoders import Decoders
from fcn.errors import MissingBand
from fcn.images import DecodedImage
from tasks import stores
from tasks.pages import PAGE_ROWS, SCHEMA, align, sort
from tasks.read_errors import NoImageBytes, ReadError
from tasks.reading import read_objects
from tasks.stores import Entry, StoreError

BandFiles = Mapping[str, bytes | ReadError | MissingBand]
"""What was read of an image's bands, by name."""


def none_in(url: str, what: str, bands: Sequence[str]) -> StoreError:
    """The error of a collection that can hold no bands."""
    return StoreError(
        f"{stores.redact(url)} is {what}, which holds no bands, and the model sees the bands "
        f"{', '.join(bands)}; give a folder with {', '.join(f'bands-{b}/' for b in bands)} beside "
        f"it, or Parquet files with columns {', '.join(f'band_{b}' for b in bands)}"
    )


def find(
    pages: Iterable[pa.Table], collection_url: str, bands: Sequence[str]
) -> Iterator[pa.Table]:
    """The images of a collection with the files of their bands, sorted by key as before.

    Parquet files hold the bands of their images: only from the first image that is a file of its
    own on is anything looked for beside the collection. Such images and files meet by their keys
    less extension, for which both are sorted anew, see `tasks.pages.sort`: memory holds pages,
    not listings.

    Args:
        pages: The images.
        collection_url: Where they are.
        bands: Names.

    Raises:
        StoreError: images, outside Parquet files, of a collection that has nothing beside it, or
            a folder that cannot be listed; while iterating.
    """
    rest = iter(pages)
    for page in rest:
        if page["container"].null_count:
            yield from _with_files(chain([page], rest), collection_url, bands)
        else:
            yield page


def _with_files(
    pages: Iterable[pa.Table], collection_url: str, bands: Sequence[str]
) -> Iterator[pa.Table]:
    """`find` where some images are files of their own."""
    beside = _beside(collection_url)
    if beside is None:
        raise StoreError(
            f"{stores.redact(collection_url)} has no folder beside it, where bands would be; "
            "put the images into a folder such as images/, with bands-NAME/ beside it"
        )
    images = sort(map(_by_stem, pages))
    files = [sort(_listed(f"{beside}/bands-{band}")) for band in bands]
    return sort(_join(images, dict(zip(bands, files, strict=True))))


def _beside(collection_url: str) -> str | None:
    """The folder that holds the collection's and those of its bands; of a whole store, ``None``."""
    kind = stores.kind_of(collection_url)
    url = stores.split_glob(collection_url)[0] if kind == "glob" else collection_url
    url = stores.absolute(url).rstrip("/")
    url = url.rpartition("/")[0] if kind == "object" else url
    scheme, separator, path = url.rpartition("://")
    return f"{scheme}{separator}{path.rpartition('/')[0]}" if "/" in path else None


# Sorted by these keys, the files of an image come before it, the first choice first.
def _image_key(stem: str) -> str:
    return f"{stem}\1"


def _file_key(stem: str, extension: str) -> str:
    return f"{stem}\0{EXTENSIONS.index(extension)}"


def _by_stem(page: pa.Table) -> pa.Table:
    """A page of images by their keys less extension; the keys are in a column ``image``."""
    stems = [_stem(str(key)) for key in page["key"].to_pylist()]
    keys = pa.array(map(_image_key, stems), pa.string())
    images = page.append_column("image", page["key"]).set_column(0, "key", keys)
    return images.append_column("stem", pa.array(stems, pa.string()))


def _listed(folder: str) -> Iterator[pa.Table]:
    """The files of a band, by the page, as JSON."""
    if not stores.exists(folder):
        return
    found = (
        (entry, entry.key.lower().rpartition(".")[2]) for entry in stores.list_entries(f"{folder}/")
    )
    rows = (
        {
            "key": _file_key(_stem(entry.key), extension),
            "stem": _stem(entry.key),
            "file": json.dumps([entry.url, entry.size, entry.etag]),
        }
        for entry, extension in found
        if extension in EXTENSIONS
    )
    while page := list(islice(rows, PAGE_ROWS)):
        yield pa.Table.from_pylist(page)


def _join(
    images: Iterable[pa.Table], files: Mapping[str, Iterable[pa.Table]]
) -> Iterator[pa.Table]:
    """The images with the files of their bands, sorted by stem still."""
    last: dict[str, pa.Table] = {}  # files of the last stem: another image may have the same
    for page, *found in align([images, *files.values()]):
        there = dict(last)
        for band, some in zip(files, found, strict=True):
            if some is not None:
                there[band] = pa.concat_tables([last[band], some]) if band in last else some
        if page is not None:
            yield _joined(page, there)
        for band, table in there.items():
            stem = table["stem"][table.num_rows - 1]
            last[band] = table.filter(pc.equal(table["stem"], stem))


def _joined(images: pa.Table, files: Mapping[str, pa.Table]) -> pa.Table:
    """A page of images with the files of their bands, its keys as they were."""
    found = {}
    for band, page in files.items():
        places = pc.index_in(images["stem"], value_set=page["stem"].combine_chunks())
        found[band] = page["file"].take(places).to_pylist()
    texts = [
        None
        if container is not None
        else json.dumps(
            {band: json.loads(str(of[row])) for band, of in found.items() if of[row] is not None}
        )
        for row, container in enumerate(images["container"].to_pylist())
    ]
    named = images.select(SCHEMA.names).set_column(0, "key", images["image"])
    place = SCHEMA.get_field_index("bands")
    return named.set_column(place, "bands", pa.array(texts, pa.string()))


def _stem(key: str) -> str:
    folder, slash, name = key.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def expected_bytes(entry: Entry) -> int:
    """Bytes that reading an image with its bands brings into memory, about."""
    return entry.expected_bytes + sum(band.expected_bytes for band in _own_files(entry).values())


def _own_files(entry: Entry) -> dict[str, Entry]:
    """The files of an image's bands, as objects of their own."""
    return {
        band: Entry(key=entry.key, url=url, size=size, etag=etag)
        for band, (url, size, etag) in json.loads(entry.bands or "{}").items()
    }


def stacked(
    image: DecodedImage, files: Mapping[str, bytes], bands: Sequence[Band], decoders: Decoders
) -> DecodedImage:
    """An image with its bands behind the colours.

    Raises:
        BandError: a band that cannot be decoded, or does not fit.
    """
    pixels = decode_stacked(image.pixels, files, bands, decoders.decode_band)
    return replace(image, pixels=pixels)


def read(
    entries: Sequence[Entry], bands: Sequence[str], *, last_attempt: bool, max_bytes: int
) -> tuple[list[bytes | ReadError], list[BandFiles]]:
    """The bytes of images, as `tasks.reading.read_objects` gives them, and of their bands.

    Raises:
        StoreUnavailable: the store is out.
    """
    places: list[tuple[int, str, Entry]] = []
    files: list[dict[str, bytes | ReadError | MissingBand]] = [{} for _ in entries]
    for index, entry in enumerate(entries):
        own = _own_files(entry)
        for band in bands:
            if entry.container is not None:
                places.append((index, band, replace(entry, column=f"band_{band}")))
            elif band in own:
                places.append((index, band, own[band]))
            else:
                stem = _stem(entry.key)
                files[index][band] = MissingBand(
                    f"no band {band}: there is no bands-{band}/{stem}.png, .tif or .tiff beside "
                    "the folder of the collection"
                )
    wanted = [*entries, *(entry for _, _, entry in places)]
    found = read_objects(wanted, last_attempt=last_attempt, max_bytes=max_bytes)
    for (index, band, _), data in zip(places, found[len(entries) :], strict=True):
        if isinstance(data, NoImageBytes):
            files[index][band] = MissingBand(f"no band {band}: {data}")
        elif isinstance(data, ReadError):
            files[index][band] = type(data)(f"band {band}: {data}")
        else:
            files[index][band] = data
    return found[: len(entries)], list(files)
