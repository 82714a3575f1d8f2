"""How a collection is segmented: the settings of `predict`, and the digest of a run."""

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fcn.backends import Backend, find_backend
from fcn.bands import Band
from fcn.device import Precision, resolve_precision
from fcn.images import MAX_PIXELS
from fcn.masks import MaskFormat
from fcn.recipes import Device
from tasks.budget import least_budget
from tasks.reading import MAX_BYTES

Sink = Literal["parquet", "png"]
FanOut = Literal["here", "work-pool", "ray", "dask"]

IMAGE_PATTERNS = (
    *("*.avif", "*.bmp", "*.gif", "*.jp2", "*.j2k", "*.jpg", "*.jpeg", "*.jpe", "*.pgm"),
    *("*.png", "*.pnm", "*.ppm", "*.qoi", "*.tga", "*.tif", "*.tiff", "*.webp"),
)
"""Names of files that hold images, in the formats that `fcn.decode_image` reads."""

ROW_FORMAT = 4
"""Raised whenever the same image and model would give another row."""


class PredictConfig(BaseModel):
    """Settings of `predict`. The defaults suit a few thousand photographs on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images_per_shard: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="Images of a shard, the unit of work, retry and resume: one Parquet part. "
        "Fixed by the first run over an output; an unfinished run goes on with its own.",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Images of the same size through the network at once on a GPU; empty: 8. A "
        "CPU takes them one by one, so that a mask never depends on its neighbours.",
    )
    device: Device = Field(
        "auto",
        description="Where the network runs: auto (a GPU where there is one), cpu, cuda, cuda:1.",
    )
    precision: Precision = Field(
        "auto",
        description="The network's arithmetic; auto is bf16 on a GPU, fp32 elsewhere.",
    )
    backend: Backend = Field(
        "auto",
        description="What runs the network: torch, or on a CPU openvino or onnxruntime, of the "
        "extras openvino and export; auto: what the runs before over this output used, else the "
        "fastest that is installed. Scores differ in the last bits between them.",
    )
    mask_format: MaskFormat = Field(
        "png",
        description="Masks in the parts: png, palette PNG whose indices are class ids; rle, run "
        "lengths, about 40 % smaller, read by fcn.decode_mask.",
    )
    sinks: tuple[Sink, ...] = Field(
        ("parquet",),
        min_length=1,
        description="Where masks go: parquet, into the parts; png, to one object per image, "
        "masks/KEY.png. Rows about every image are in the parts in any case.",
    )
    tile_size: int | None = Field(
        None,
        ge=64,
        le=1 << 14,
        description="Side of the square tiles, in pixels, that larger images are cut into for "
        "the network; empty: automatic above a size. Masks do not depend on it.",
    )
    max_image_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=MAX_PIXELS,
        description="Images with more pixels, by their header, become failed rows undecoded.",
    )
    max_image_bytes: int = Field(
        MAX_BYTES,
        ge=1,
        le=1 << 34,
        description="Image files of more bytes become failed rows, unread where their size is "
        "listed.",
    )
    memory_budget: int = Field(
        10 << 30,
        ge=1,
        le=1 << 44,
        description="Most bytes that files, pixels and masks take at once, over all shards in "
        "work and in the processes that decode; only images near max_image_pixels make use of "
        "all of it. On top come the network (weights, maps of one batch or tile, or of small "
        "images, one a core) and the finished rows of the shards in work.",
    )
    max_failed: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of failed images with which the run still succeeds. Parts "
        "are kept in any case.",
    )
    include: tuple[str, ...] = Field(
        IMAGE_PATTERNS,
        min_length=1,
        description="Which objects below a prefix, and members of a tar file, are images: shell "
        "patterns, matched without case against the file name, or against the whole key where "
        "the pattern has a slash. What a glob matches, a list names, or a Parquet file holds is "
        "taken as it is.",
    )
    exclude: tuple[str, ...] = Field(
        (), description="Objects to leave out, in patterns like those of include."
    )
    lenient: bool = Field(
        False,
        description="Segment truncated images as far as they go, with status partial; "
        "otherwise they are failed rows.",
    )
    concurrency: int = Field(
        2,
        ge=1,
        le=32,
        description="Shards in work at once in a process. They share the network, a GPU by batches "
        "and a CPU by an image a core; meanwhile others read, decode and write.",
    )
    network_cores: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Cores that the network uses of a CPU, an image on each; empty: as many as "
        "torch uses where the run is planned. Images too large for that take all of them, and the "
        "last bits of their masks depend on how many: so every process of a run uses the same "
        "number, and an unfinished run goes on with its own.",
    )
    fan_out: FanOut = Field(
        "here",
        description="Where shards are segmented: here, in this process; work-pool, in child runs, "
        "one for each partition; ray or dask, on a cluster, a task for each partition. The parts "
        "are the same bytes, and each goes on where another has stopped. Anywhere but here URLs "
        "must mean the same on all machines, and precision auto is what it is on this one.",
    )
    shards_per_partition: int = Field(
        20,
        ge=1,
        le=500,
        description="Shards of a partition, what a child run or a task on a cluster does: ten "
        "minutes or more. Larger where there would be more than 900 partitions.",
    )
    partitions_at_once: int = Field(
        4,
        ge=1,
        le=200,
        description="Partitions in work or waiting for a place at once: no more child runs, or "
        "tasks on a cluster, exist at a time.",
    )
    deployment: str = Field(
        "predict-partition/predict-partition",
        pattern=r"^[^/]+/[^/]+$",
        description="For work-pool: the deployment of the flow predict-partition; its work pool "
        "decides where child runs go.",
    )
    cluster: str | None = Field(
        None,
        min_length=1,
        description="For ray and dask: address of a cluster, such as auto (the Ray cluster that "
        "this machine belongs to) or tcp://scheduler:8786 (Dask); empty: one on this machine, "
        "for as long as the run lasts.",
    )
    gpus_per_task: float = Field(
        0,
        ge=0,
        le=16,
        description="For ray: GPUs that a task asks for; with 0 it sees none. Of a Dask cluster "
        "each worker takes what it sees: start one for each GPU.",
    )

    @model_validator(mode="after")
    def _run_lengths_have_a_place(self) -> "PredictConfig":
        if self.mask_format == "rle" and "parquet" not in self.sinks:
            raise ValueError("mask_format='rle' needs the parquet sink; png objects are PNG")
        return self

    @model_validator(mode="after")
    def _cluster_is_used(self) -> "PredictConfig":
        if self.cluster and self.fan_out not in {"ray", "dask"}:
            raise ValueError(
                f"cluster={self.cluster!r} is of no use to fan_out={self.fan_out!r}; choose ray "
                "or dask, or leave the address out"
            )
        if self.gpus_per_task and self.fan_out != "ray":
            raise ValueError(
                f"gpus_per_task={self.gpus_per_task:g} is of no use to "
                f"fan_out={self.fan_out!r}; Ray alone gives GPUs to tasks"
            )
        return self

    @model_validator(mode="after")
    def _largest_image_fits_into_memory(self) -> "PredictConfig":
        self.require_room()
        return self

    def require_room(self, bands: Sequence[Band] = (), num_heads: int = 1) -> None:
        """Find out whether the memory budget holds the largest image allowed.

        Args:
            bands: Of the image, besides its colours.
            num_heads: Of the model, each of which gives it a label map.

        Raises:
            ValueError: it does not.
        """
        least = least_budget(self.max_image_pixels, self.max_image_bytes, bands, num_heads)
        if self.memory_budget < least:
            seen = f" with the bands {', '.join(band.name for band in bands)}" if bands else ""
            seen += f" and masks of {num_heads} heads" if num_heads > 1 else ""
            raise ValueError(
                f"memory_budget={self.memory_budget:,} bytes; an image of "
                f"max_image_pixels={self.max_image_pixels:,}{seen} from a file of "
                f"max_image_bytes={self.max_image_bytes:,} may take {least:,}: raise the budget, "
                "or lower what is allowed"
            )


def run_digest(model_digest: str, config: PredictConfig) -> str:
    """Digest of everything that decides a row beside the image: 64 hex digits.

    Two runs with the same digest give the same row for the same image bytes, so what one
    has done the other need not do.

    Args:
        model_digest: SHA-256 of the model file.
        config: Settings; those that change no row (batch size, shards, …) do not count, and
            the device only as far as it decides the backend and the precision.

    Raises:
        DeviceError: a device this machine does not have.
    """
    backend, device = config.backend, torch.device("cpu")
    if backend in ("auto", "torch"):
        backend, device = find_backend(backend, config.device, config.precision)
    decisive = {
        "row_format": ROW_FORMAT,
        "model": model_digest,
        "mask_format": config.mask_format,
        "sinks": sorted(set(config.sinks)),
        "precision": resolve_precision(device, config.precision),
        "max_image_pixels": config.max_image_pixels,
        "max_image_bytes": config.max_image_bytes,
        "lenient": config.lenient,
    }
    if backend != "torch":
        decisive["backend"] = backend
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
