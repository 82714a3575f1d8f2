"""Where a source keeps its images, masks and splits: PASCAL VOC, CamVid, plain folders.

::

    voc      JPEGImages/KEY.jpg, SegmentationClass/KEY.png, and where there
             ImageSets/Segmentation/{train,val,test}.txt; with trainval.txt alone, or no
             list: a seeded split
    camvid   train/KEY.png, trainannot/KEY.png; val and test alike, any of them
    folders  images/KEY.jpg, masks/KEY.png, and the first of these that is there:
             images/train/, images/val/, … (masks/ alike); splits.csv; splits.json;
             train.txt, val.txt, test.txt (see `tasks.split_files`); else a seeded split

An image and its mask have the same path but for the extension; a mask's name may end in
``_mask``, ``_label``, ``_gt`` or ``_L`` besides. Files that are no images, and names that
begin with a dot, are passed over.

Of layout folders, ``masks-NAME/KEY.png`` are the masks of a further head, such as
``masks-geometric``; an image may have none there. ``bands-NAME/KEY.png`` or ``.tif`` are those of
a band, such as ``bands-depth`` (`fcn.bands`): every image has one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from fcn.names import check_band_name, check_head_name
from tasks import split_files, stores
from tasks.dataset import FIRST_HEAD, DatasetError, Finding
from tasks.pairing import Files, Found, Pair, pair_files, seeded_split
from tasks.split_files import SPLIT_NAMES, Lists

Layout = Literal["auto", "voc", "camvid", "folders"]

EXPECTED: Mapping[str, str] = {
    "voc": "JPEGImages/ and SegmentationClass/",
    "camvid": "train/ and trainannot/, or the same of val or test",
    "folders": "images/ and masks/",
}
"""The folders by which a layout is recognised."""

CLASS_FILES = ("classes.json", "classes.csv", "classes.txt", "classes_voc21.txt")
"""Files at the top of a source that may name its classes; the first one there counts. Those of
a further head are classes-NAME.json, .csv or .txt."""

EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "tif", "tiff", "webp", "gif", "avif"),
        *("jp2", "j2k", "ppm", "pgm", "pbm", "pnm", "tga", "qoi"),
    )
)
"""Extensions of image files, in lower case."""

_SPLITS = ("train", "val", "test")


class Source:
    """A source: its pairs, by split and key; what could not be paired; its class file.

    No dataclass, since it is handed from task to task: Prefect looks for futures in every
    field of one, which takes it 15 s for 100,000 pairs.

    ``further_class_files`` has an entry for each further head: the URL of its class file, or None.
    ``bands`` are the names of the bands that every pair has.
    """

    def __init__(
        self,
        *,
        url: str,
        layout: str,
        pairs: list[Pair],
        findings: list[Finding],
        class_file_url: str | None,
        further_class_files: Mapping[str, str | None] | None = None,
        bands: Sequence[str] = (),
    ) -> None:
        self.url = url
        self.layout = layout
        self.pairs = pairs
        self.findings = findings
        self.class_file_url = class_file_url
        self.further_class_files = dict(further_class_files or {})
        self.bands = tuple(bands)


class _Tree:
    """The listing of a source."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files = {e.key: e for e in stores.list_entries(url) if not _is_hidden(e.key)}
        self.top = sorted({_first(key) for key in self.files})

    def has(self, *folders: str) -> bool:
        """Whether all these folders are at the top."""
        return all(f"{folder}/" in self.top for folder in folders)

    def images(self, folder: str, prefix: str = "") -> Files:
        """Image files below a folder by ``prefix`` and path in the folder, less extension."""
        found = defaultdict(list)
        for path, entry in self.files.items():
            extension = path[path.rfind(".") :].lower()
            if path.startswith(f"{folder}/") and extension in EXTENSIONS:
                found[prefix + path.removeprefix(f"{folder}/")[: -len(extension)]].append(entry)
        return found

    def heads(self) -> list[str]:
        """The further heads of layout folders, by the names of their folders.

        Raises:
            DatasetError: a name that none can have.
        """
        start = "masks-"
        heads = [name.strip("/").removeprefix(start) for name in self.top if name.startswith(start)]
        for head in heads:
            try:
                check_head_name(head)
            except ValueError as error:
                raise DatasetError(f"{stores.redact(self.url)}/{start}{head}: {error}") from error
            if head == FIRST_HEAD:
                raise DatasetError(
                    f"{stores.redact(self.url)}/{start}{head}: the head that masks/ belong to has "
                    f"the name {head}; rename the folder"
                )
        return heads

    def bands(self) -> list[str]:
        """The bands of layout folders, by the names of their folders.

        Raises:
            DatasetError: a name that none can have.
        """
        start = "bands-"
        bands = [name.strip("/").removeprefix(start) for name in self.top if _is_band_folder(name)]
        for band in bands:
            try:
                check_band_name(band)
            except ValueError as error:
                raise DatasetError(f"{stores.redact(self.url)}/{start}{band}: {error}") from error
        return bands

    def first(self, names: Iterable[str]) -> str | None:
        """The URL of the first of these files that is at the top."""
        return next((self.files[name].url for name in names if name in self.files), None)

    def lists(self, folder: str = "", names: Iterable[str] = _SPLITS) -> Lists:
        """The lists ``NAME.txt`` of a folder."""
        found = {name: self.files.get(f"{folder}{name}.txt") for name in names}
        return split_files.read_lists({name: entry.url for name, entry in found.items() if entry})


def find_samples(
    source_url: str, layout: Layout = "auto", *, val_fraction: float = 0.2, seed: int = 0
) -> Source:
    """List a source and pair its images with their masks.

    Args:
        source_url: What fsspec opens.
        layout: Where files are; ``auto`` recognises it by the folders at the top.
        val_fraction: Share of the samples that a seeded split gives to val.
        seed: Of the seeded split. A sample's place in it does not depend on the others.

    Raises:
        DatasetError: no layout fits, a split file cannot be used, or there is no image.
        StoreError: the URL does not exist, or cannot be listed.
    """
    tree = _Tree(source_url)
    name = _recognise(tree, layout)
    pairs: list[Pair] = []
    findings: list[Finding] = []
    parts = _LAYOUTS[name](tree)
    for part in parts:
        paired, missing = pair_files(part)
        pairs += paired if part.split else seeded_split(paired, val_fraction, seed)
        findings += missing
    findings += _unlisted(parts)
    if not pairs and not findings:
        raise DatasetError(
            f"{stores.redact(source_url)} has the folders of layout {name} "
            f"({EXPECTED[name]}) but no image file in them"
        )
    further = {head: f"classes-{head}" for head in (tree.heads() if name == "folders" else ())}
    return Source(
        url=source_url,
        layout=name,
        pairs=sorted(pairs, key=lambda pair: (pair.split, pair.key)),
        findings=findings,
        class_file_url=tree.first(CLASS_FILES),
        further_class_files={
            head: tree.first(f"{stem}.{extension}" for extension in ("json", "csv", "txt"))
            for head, stem in further.items()
        },
        bands=tree.bands() if name == "folders" else (),
    )


def _recognise(tree: _Tree, layout: Layout) -> str:
    fitting = [name for name, fits in _FITS.items() if fits(tree.has)]
    wanted = fitting if layout == "auto" else [name for name in fitting if name == layout]
    if wanted:
        return wanted[0]
    names = list(_FITS) if layout == "auto" else [layout]
    expected = "; ".join(f"{name}: {EXPECTED[name]}" for name in names)
    shown = ", ".join(tree.top[:12]) + (", …" if len(tree.top) > 12 else "")
    message = (
        f"{'no layout' if layout == 'auto' else f'layout {layout} does not'} "
        f"fit{'s' if layout == 'auto' else ''} {stores.redact(tree.url)}: its top level holds "
        f"{shown or 'nothing'}. Expected {expected}."
    )
    raise DatasetError(message + _hint(tree, fitting))


def _hint(tree: _Tree, fitting: list[str]) -> str:
    """What to give instead, if that can be told."""
    if fitting:
        return f" It looks like layout {fitting[0]}."
    for folder in (name for name in tree.top if name.endswith("/")):
        below = {
            _first(path.removeprefix(folder)) for path in tree.files if path.startswith(folder)
        }
        for name, fits in _FITS.items():
            if fits(lambda *folders, below=below: {f"{f}/" for f in folders} <= below):
                url = stores.redact(stores.join(tree.url, folder))
                return f" The folder {folder} looks like layout {name}: give {url} as source_url."
    return ""


def _voc(tree: _Tree) -> list[Found]:
    images, masks = tree.images("JPEGImages"), tree.images("SegmentationClass")
    folder = "ImageSets/Segmentation/"
    lists = tree.lists(folder)
    both = tree.lists(folder, ["trainval"])
    if both and not lists.keys() & {"train", "val"}:
        lists[""] = both["trainval"]
    return _listed(images, masks, lists, "JPEGImages")


def _camvid(tree: _Tree) -> list[Found]:
    return [
        Found(
            images=tree.images(split, f"{split}/"),
            masks=tree.images(f"{split}annot", f"{split}/"),
            split=split,
        )
        for split in _SPLITS
        if tree.has(split) or tree.has(f"{split}annot")
    ]


def _folders(tree: _Tree) -> list[Found]:
    images, masks = tree.images("images"), tree.images("masks")
    further = {head: tree.images(f"masks-{head}") for head in tree.heads()}
    bands = {band: tree.images(f"bands-{band}") for band in tree.bands()}
    folders = {_first(key) for key in images}
    if folders and folders <= {f"{name}/" for name in SPLIT_NAMES}:
        folders |= {_first(key) for key in masks} & {f"{name}/" for name in SPLIT_NAMES}
        return [
            Found(
                images=_below(folder, images),
                masks=_below(folder, masks),
                split=SPLIT_NAMES[folder.rstrip("/")],
                further={head: _below(folder, found) for head, found in further.items()},
                bands={band: _below(folder, found) for band, found in bands.items()},
            )
            for folder in sorted(folders)
        ]
    if "splits.csv" in tree.files:
        lists = split_files.read_csv(tree.files["splits.csv"].url)
    elif "splits.json" in tree.files:
        lists = split_files.read_json(tree.files["splits.json"].url)
    else:
        lists = tree.lists()
    return [replace(f, bands=bands) for f in _listed(images, masks, lists, "images", further)]


_LAYOUTS: Mapping[str, Callable[[_Tree], list[Found]]] = {
    "voc": _voc,
    "camvid": _camvid,
    "folders": _folders,
}
_FITS: Mapping[str, Callable[[Callable[..., bool]], bool]] = {
    "voc": lambda has: has("JPEGImages", "SegmentationClass"),
    "camvid": lambda has: any(has(split, f"{split}annot") for split in _SPLITS),
    "folders": lambda has: has("images", "masks"),
}


def _below(folder: str, files: Files) -> Files:
    return {key: found for key, found in files.items() if key.startswith(folder)}


def _listed(
    images: Files,
    masks: Files,
    lists: Lists,
    folder: str,
    further: Mapping[str, Files] | None = None,
) -> list[Found]:
    """What each list names; without lists everything."""
    heads = further or {}
    if not lists:
        return [Found(images=images, masks=masks, further=heads)]
    keys = images.keys() | masks.keys()
    return [
        Found(
            images=images,
            masks=masks,
            split=split,
            keys=dict.fromkeys(split_files.resolve(entries, keys, folder)),
            further=heads,
        )
        for split, entries in lists.items()
    ]


def _unlisted(parts: list[Found]) -> list[Finding]:
    """A warning about pairs that no list asks for."""
    if parts[0].keys is None:
        return []
    listed = {key for part in parts for key in part.keys or ()}
    count = len((parts[0].images.keys() & parts[0].masks.keys()) - listed)
    text = f"{count:,} images with masks are in no list of a split and are left out"
    return [Finding(kind="not_in_a_split", severity="warning", text=text, count=count)] * (
        count > 0
    )


def _first(path: str) -> str:
    """The first part of a path; a folder with its slash."""
    name, slash, _ = path.partition("/")
    return name + slash


def _is_band_folder(name: str) -> bool:
    return name.startswith("bands-") and name.endswith("/")


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")
