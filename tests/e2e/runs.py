"""A prediction on a `Machine`, and what its server has recorded of it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State

from tests.tasks.pictures import encoded, pixels, put, save_model


@dataclass(frozen=True)
class Job:
    """A collection, a model, and where the output goes."""

    work: Path
    num_images: int
    images_per_shard: int = 10

    def make(self) -> "Job":
        """Write images and model; the model is small, its weights are random."""
        rng = np.random.default_rng(0)
        images = {f"{n:04d}.png": encoded(pixels(rng, 320, 480)) for n in range(self.num_images)}
        put(f"{self.work}/in", images)
        save_model(self.work / "model.safetensors")
        return self

    @property
    def output(self) -> Path:
        """Where the masks go."""
        return self.work / "out"

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the flow `predict`."""
        return {
            "collection_url": f"{self.work}/in",
            "model_url": f"{self.work}/model.safetensors",
            "output_url": str(self.output),
            "config": {"images_per_shard": self.images_per_shard},
        }

    @property
    def num_shards(self) -> int:
        """Of the collection."""
        return -(-self.num_images // self.images_per_shard)

    def num_parts(self) -> int:
        """Parts that are there."""
        return len(list(self.output.glob("parts/*/*.parquet")))


def states(client: SyncPrefectClient, run_id: UUID) -> dict[str, State[Any]]:
    """The states that a flow run was in, the newest of each name."""
    return {str(state.name): state for state in client.read_flow_run_states(run_id)}


def task_runs(client: SyncPrefectClient, run_id: UUID) -> Counter[tuple[str, str]]:
    """Names and states of the task runs of a flow run."""
    found: list[tuple[str, str]] = []
    while True:
        page = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])),
            limit=200,
            offset=len(found),
        )
        found += [(task_run.name, str(task_run.state_name)) for task_run in page]
        if len(page) < 200:
            return Counter(found)


def names_in(found: Counter[tuple[str, str]], state: str) -> list[str]:
    """Names of task runs in a state."""
    return sorted(name for name, name_of_state in found if name_of_state == state)
