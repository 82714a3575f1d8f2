"""The model that serves: which one it is, and which ones did before.

::

    promotions/00000.json      a promotion: the model, its scores, what it was compared with
    <SHA-256>.safetensors      a promoted model under its digest; never written a second time
    serving.json               the newest promotion: what predict and evaluate follow

A promotion is made by creating its record, under the next number, unless the name is taken: of
several at once the first wins, and the others have been compared with a model that serves no
more. ``serving.json`` is only a copy. Whoever writes it looks afterwards whether its record is
still the newest, so that the last one to write leaves the newest; and the next promotion mends
what a killed one left behind.
"""

import hashlib
import json
import re
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks import stores
from tasks.models import read_model

SERVING_NAME = "serving.json"

_RECORD = re.compile(r"(\d{5,})\.json")


class PromoteError(Exception):
    """A promotion that cannot be made; the serving model stays what it is."""


class Previous(BaseModel):
    """The model that served before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    model_url: str
    sha256: str


class Promotion(BaseModel):
    """What ``serving.json`` says.

    Attributes:
        format: of this file.
        number: of the promotion, counted from 0.
        model_url: the model, under its digest.
        sha256: of the model's file.
        source_url: where the model was when it was promoted; other bytes may be there by now.
        promoted_at: when, UTC.
        rule: ``gain``, ``always``, or ``first`` where nothing served before.
        dataset_url: what it was scored on.
        dataset_digest: of that dataset.
        split: of that dataset.
        num_images: in the split.
        mean_iu: of the model there.
        mean_iu_low: lower bound of its 95 % interval; None if it is not known.
        mean_iu_high: its upper bound.
        gain: how much higher that is than the mean IU of the model that served before.
        gain_low: lower bound of the paired 95 % interval of the gain.
        gain_high: its upper bound.
        previous: the model that served before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    number: int = Field(ge=0)
    model_url: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    source_url: str
    promoted_at: datetime
    rule: Literal["first", "gain", "always"]
    dataset_url: str
    dataset_digest: str
    split: str
    num_images: int
    mean_iu: float | None
    mean_iu_low: float | None
    mean_iu_high: float | None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    previous: Previous | None = None


def model_url(models_url: str, sha256: str) -> str:
    """Where a promoted model is."""
    return stores.join(models_url, f"{sha256}.safetensors")


def serving_url(models_url: str) -> str:
    """Where the pointer is."""
    return stores.join(models_url, SERVING_NAME)


def resolve(url: str) -> str:
    """URL of the model that ``url`` means: itself, or where it is a ``.json``, what that names.

    A model lies beside its pointer, under its digest, which whoever reads it checks.

    Raises:
        StoreError: the pointer cannot be read.
        PromoteError: it is no pointer of ours.
    """
    if not url.endswith(".json"):
        return url
    folder, slash, _ = url.rpartition("/")
    return f"{folder}{slash}{_parse(stores.read_bytes(url), url).sha256}.safetensors"


def find(url: str, sha256: str) -> Promotion | None:
    """The newest promotion of a model that lies under its digest; None for other models.

    Raises:
        StoreError: the store cannot be read.
        PromoteError: a record there is none of ours.
    """
    folder, slash, name = url.rpartition("/")
    if name != f"{sha256}.safetensors":
        return None
    promotion = newest(folder + slash)
    while promotion is not None and promotion.sha256 != sha256:
        older = promotion.number - 1
        record = _record_url(folder + slash, older)
        promotion = _parse(stores.read_bytes(record), record) if older >= 0 else None
    return promotion


def newest(models_url: str) -> Promotion | None:
    """The newest promotion; None where there was none.

    Raises:
        StoreError: the store cannot be read.
        PromoteError: its record is none of ours.
    """
    folder = stores.join(models_url, "promotions")
    if not stores.exists(folder):
        return None
    matches = (_RECORD.fullmatch(entry.key) for entry in stores.list_entries(folder))
    number = max((int(match[1]) for match in matches if match), default=None)
    if number is None:
        return None
    url = _record_url(models_url, number)
    return _parse(stores.read_bytes(url), url)


def keep_model(models_url: str, data: bytes) -> str:
    """Put a model under its digest, unless it is there; returns its URL.

    Raises:
        StoreError: the store cannot be written.
        CheckpointError: other bytes are there under this digest.
    """
    url = model_url(models_url, hashlib.sha256(data).hexdigest())
    if not stores.create_bytes(url, data):
        read_model(url)
    return url


def publish(models_url: str, promotion: Promotion) -> None:
    """Make a promotion, and point to it.

    Raises:
        PromoteError: another one was faster.
        StoreError: the store cannot be written.
    """
    data = _encode(promotion)
    url = _record_url(models_url, promotion.number)
    # the store's answer may get lost, and its client ask again: then the record there is ours
    if not stores.create_bytes(url, data) and stores.read_bytes(url) != data:
        there = _parse(stores.read_bytes(url), url)
        raise PromoteError(
            f"{there.model_url} was promoted meanwhile; run again to be compared with that one"
        )
    point(models_url)


def point(models_url: str) -> Promotion | None:
    """Make the pointer say what the newest record says; returns that.

    Raises:
        StoreError: the store cannot be read or written.
        PromoteError: a record is none of ours.
    """
    promotion = newest(models_url)
    url = serving_url(models_url)
    while promotion is not None and not (
        stores.exists(url) and stores.read_bytes(url) == _encode(promotion)
    ):
        stores.write_bytes(url, _encode(promotion))
        promotion = newest(models_url)
    return promotion


def _record_url(models_url: str, number: int) -> str:
    return stores.join(models_url, "promotions", f"{number:05d}.json")


def _encode(promotion: Promotion) -> bytes:
    content = promotion.model_dump(mode="json")
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _parse(data: bytes, url: str) -> Promotion:
    try:
        return Promotion.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise PromoteError(
            f"{stores.redact(url)} is no {SERVING_NAME} of promote: {place}: {first['msg']}; give "
            "the URL of a model, or of the pointer that promote wrote"
        ) from None
