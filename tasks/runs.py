"""A training run in a store: its settings, its state, its metrics, its model.

::

    config.json         settings and dataset digest, written first: whose run this is
    state/state.safetensors   what resuming needs
    metrics.jsonl       a line per logging interval and per evaluation
    best.safetensors    the model with the highest mean IU on val so far
    model.safetensors   the model after the last step, written last: the run is done
"""

import json
from dataclasses import dataclass
from typing import Any

from fcn.recipes import TrainConfig
from tasks import stores
from tasks.dataset import DatasetInfo

BEST_NAME = "best.safetensors"
CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
MODEL_NAME = "model.safetensors"
STATE_NAME = "state/state.safetensors"

Row = dict[str, Any]


class RunError(Exception):
    """A run that cannot be made as asked: of its place, or of its settings."""


@dataclass(frozen=True)
class Run:
    """The place of one training run.

    Attributes:
        url: Where the run is kept.
    """

    url: str

    @property
    def model_url(self) -> str:
        """The trained model."""
        return stores.join(self.url, MODEL_NAME)

    @property
    def best_url(self) -> str:
        """The best model so far; there is none without a val split."""
        return stores.join(self.url, BEST_NAME)

    @property
    def _state_url(self) -> str:
        return stores.join(self.url, STATE_NAME)

    def is_done(self) -> bool:
        """Whether the model is there."""
        return stores.exists(self.model_url)

    def find_best(self) -> str | None:
        """URL of the best model, None if there is none."""
        return self.best_url if stores.exists(self.best_url) else None

    def release(self) -> None:
        """Give the place back, unless there is a state or a model: nothing was begun."""
        if not self.is_done() and not stores.exists(self._state_url):
            stores.remove(stores.join(self.url, CONFIG_NAME))

    def read_state(self) -> bytes | None:
        """What an earlier process left to go on from."""
        return stores.read_bytes(self._state_url) if stores.exists(self._state_url) else None

    def read_metrics(self) -> list[Row]:
        """Rows of metrics.jsonl, none before the first are written."""
        url = stores.join(self.url, METRICS_NAME)
        if not stores.exists(url):
            return []
        lines = stores.read_bytes(url).splitlines()
        return [json.loads(line, parse_constant=lambda _: None) for line in lines]

    def write_metrics(self, rows: list[Row]) -> None:
        """Write all rows of metrics.jsonl; objects in a store cannot grow."""
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        stores.write_bytes(stores.join(self.url, METRICS_NAME), lines.encode())

    def write_state(self, state: bytes) -> None:
        """Replace the state; an interrupted write leaves the earlier one."""
        stores.write_bytes(self._state_url, state)

    def write_best(self, model: bytes) -> None:
        """Replace the best model; an interrupted write leaves the earlier one."""
        stores.write_bytes(self.best_url, model)

    def write_model(self, model: bytes) -> None:
        """Write the model, which says that the run is done."""
        stores.write_bytes(self.model_url, model)

    def start_over(self) -> None:
        """Remove models and state of an earlier training."""
        for url in (self.model_url, self.best_url, self._state_url):
            if stores.exists(url):
                stores.remove(url)


def claim(run_url: str, info: DatasetInfo, config: TrainConfig) -> Run:
    """Take a run_url for these settings on this dataset, or find it taken by the very same.

    Raises:
        RunError: Another configuration or dataset is at ``run_url``.
        StoreError: ``run_url`` holds credentials, or cannot be written.
    """
    stores.require_no_credentials(run_url)
    stores.require_writable(run_url)
    url = stores.join(run_url, CONFIG_NAME)
    wanted = run_settings(info, config)
    data = json.dumps(wanted, indent=2).encode()
    if not stores.create_bytes(url, data):
        found = _read_settings(url)
        names = sorted(key for key in wanted.keys() | found if wanted.get(key) != found.get(key))
        if names:
            differences = ", ".join(
                f"{n} {found.get(n)!r} there, {wanted.get(n)!r} now" for n in names
            )
            raise RunError(
                f"{stores.redact(run_url)} holds a training with other settings: {differences}. "
                "Give another run_url, or the settings of that run."
            )
    return Run(run_url)


def _read_settings(url: str) -> dict[str, Any]:
    try:
        return dict(json.loads(stores.read_bytes(url)))
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{stores.redact(url)} is no settings file of a run ({error}). Give another run_url."
        ) from error


def run_settings(info: DatasetInfo, config: TrainConfig) -> dict[str, Any]:
    """What makes two trainings the same: settings that decide the weights, and the data."""
    return {
        **config.decisive(),
        "init": stores.redact(config.init),
        "dataset": info.digest,
    }
