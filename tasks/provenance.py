"""How a model came to be, as its card tells: data, settings, first weights, code."""

import functools
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fcn.recipes import TrainConfig
from fcn.weights import Transplant
from tasks import stores
from tasks.dataset import DatasetInfo

ROOT = Path(__file__).resolve().parents[1]

GIT_SECONDS = 10
"""A checkout that takes longer to look at, such as one on a slow share, has no commit told."""


@functools.cache
def code_version() -> dict[str, Any]:
    """Which code runs: the installed version, and in a checkout its commit.

    Returns:
        ``version``, None where the package is not installed; ``commit``, None where this is no
        git checkout or there is no git; ``dirty``, whether tracked files differ from the
        commit, None without one. As they were when the process first asked.
    """
    try:
        installed = version("fcn-flows")
    except PackageNotFoundError:
        installed = None
    commit = _git("rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "version": installed,
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def _git(*arguments: str) -> str | None:
    """What git says of the checkout; None where it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607 - whichever git there is
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def training_facts(info: DatasetInfo, config: TrainConfig) -> dict[str, Any]:
    """What a model's card says of its data, its settings and the code that trained it."""
    return {
        "dataset": {
            "digest": info.digest,
            "source": info.source,
            "url": stores.redact(stores.absolute(info.url)),
        },
        "config": config.model_dump(mode="json") | {"init": stores.redact(config.init)},
        "code": code_version(),
    }


def init_facts(config: TrainConfig, first: Transplant) -> dict[str, Any]:
    """What a model's card says of its first weights."""
    url = config.init if first.sha256 is None else stores.absolute(config.init)
    return {"init": {"url": stores.redact(url), "sha256": first.sha256}}
