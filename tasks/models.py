"""The trained model of a run: which one it is, and the one that is loaded in this process."""

import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import fcn
from fcn.errors import CheckpointError
from tasks import stores
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
