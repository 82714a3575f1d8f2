"""Trained models: the one of a run, which is loaded once in this process, and that of a dataset."""

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import fcn
from fcn.errors import CheckpointError
from tasks import stores
from tasks.dataset import DatasetInfo
from tasks.engine import CORES
from tasks.manifest import ModelCard
from tasks.predict_config import PredictConfig
from tasks.stores import Entry, StoreError

_UNDER_DIGEST = re.compile(r"(?:^|/)([0-9a-f]{64})\.safetensors$")

_lock = threading.Lock()
_loaded: dict[tuple[object, ...], "LoadedModel"] = {}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for use, and what it is."""

    predictor: fcn.Predictor
    card: ModelCard


def find_model(model_url: str) -> Entry:
    """The model file as its store lists it, without reading it.

    Raises:
        StoreError: there is no such file.
    """
    if stores.kind_of(model_url) != "object":
        raise StoreError(
            f"model_url {stores.redact(model_url)} is no file; expected a model such as "
            "RUN/model.safetensors"
        )
    return next(stores.list_entries(model_url))


def read_model(model_url: str) -> bytes:
    """The bytes of a model file, which are checked where its name is its SHA-256.

    Raises:
        StoreError: the file cannot be read.
        CheckpointError: it is named after its digest, and has another one.
    """
    data = stores.read_bytes(model_url)
    if _UNDER_DIGEST.search(model_url):
        _check_name(model_url, _digest(data))
    return data


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_name(model_url: str, digest: str) -> None:
    """Compare the digest of a file with the one that it is named after, if it is."""
    named = _UNDER_DIGEST.search(model_url)
    if named and digest != named[1]:
        raise CheckpointError(
            f"model {stores.redact(model_url)} has another SHA-256 than its name says: it is "
            "damaged or was replaced; put the model back, or promote another one"
        )


def is_same(model: Entry, card: ModelCard) -> bool:
    """Whether a model file is, by its store's word, the one of a card."""
    place = stores.redact(stores.absolute(model.url))
    return bool(model.etag) and (place, model.size, model.etag) == (card.url, card.size, card.etag)


def load_model(model: Entry, config: PredictConfig) -> LoadedModel:
    """Load a model, once per process: shards that run at the same time share it.

    Raises:
        StoreError: the file cannot be read.
        CheckpointError: it is no model file of ours, or damaged.
        BackendError: a backend that is not installed, or cannot run the model.
        DeviceError: a device this machine does not have.
    """
    settings = (config.device, config.precision, config.batch_size, config.tile_size)
    key = (model, *settings, config.backend)
    with _lock:
        if key not in _loaded:
            _loaded.clear()  # one model at a time is in memory
            _loaded[key] = _load(model, config)
        return _loaded[key]


def _load(model: Entry, config: PredictConfig) -> LoadedModel:
    place = stores.redact(stores.absolute(model.url))
    data = stores.read_bytes(model.url)
    with ThreadPoolExecutor(1) as beside:  # a second for half a gigabyte, and `fcn.load` another
        hashing = beside.submit(_digest, data)
        try:
            loaded = fcn.load(data)
        except CheckpointError as error:
            _check_name(model.url, hashing.result())
            raise CheckpointError(f"model {place}: {error}") from error
        digest = hashing.result()
    _check_name(model.url, digest)
    make = partial(
        fcn.Predictor,
        loaded,
        device=config.device,
        precision=config.precision,
        batch_size=config.batch_size,
        tile_size=config.tile_size,
        backend=config.backend,
    )
    predictor = CORES.on_one(make).result()  # made ready for where it will run, see `fcn.backends`
    card = ModelCard(
        url=place,
        size=model.size,
        etag=model.etag,
        digest=digest,
        classes=loaded.classes.to_json(),
        ignore_index=loaded.classes.ignore_index,
        further_classes={name: c.to_json() for name, c in loaded.further_classes.items()},
        bands=loaded.input.bands,
    )
    return LoadedModel(predictor=predictor, card=card)


def load_for(info: DatasetInfo, data: bytes, model_url: str) -> fcn.Model:
    """A model that has the classes and further heads of a dataset, and sees no other bands.

    Raises:
        CheckpointError: no usable model, or one of other classes, further heads or bands.
    """
    try:
        model = fcn.load(data)
    except CheckpointError as error:
        raise CheckpointError(f"model {stores.redact(model_url)}: {error}") from error
    if model.classes.names != info.classes.names:
        raise CheckpointError(
            f"model {stores.redact(model_url)} has {len(model.classes)} classes "
            f"({', '.join(model.classes.names[:3])}, …), the dataset {stores.redact(info.url)} has "
            f"{len(info.classes)} ({', '.join(info.classes.names[:3])}, …); evaluate on a dataset "
            "with the classes the model was trained on"
        )
    found, wanted = (
        {head: classes.names for head, classes in further.items()}
        for further in (model.further_classes, info.further_classes)
    )
    if found != wanted:
        raise CheckpointError(
            f"model {stores.redact(model_url)} has the further heads {_sizes(found)}, the dataset "
            f"{stores.redact(info.url)} {_sizes(wanted)}, or other classes in one; evaluate on a "
            "dataset with the heads the model was trained on"
        )
    kinds = [{band.name: band.dtype for band in bands} for bands in (model.input.bands, info.bands)]
    if not kinds[0].items() <= kinds[1].items():
        raise CheckpointError(
            f"model {stores.redact(model_url)} sees the bands {_kinds(kinds[0])}, the dataset "
            f"{stores.redact(info.url)} has {_kinds(kinds[1])}; evaluate on a dataset with the "
            "bands the model was trained on"
        )
    return model


def _kinds(bands: Mapping[str, str]) -> str:
    """Bands and what their values are, for people."""
    return ", ".join(f"{name} ({dtype})" for name, dtype in bands.items()) or "none"


def _sizes(heads: Mapping[str, Sequence[str]]) -> str:
    """Heads and how many classes they have, for people."""
    return ", ".join(f"{head} ({len(names)} classes)" for head, names in heads.items()) or "none"
