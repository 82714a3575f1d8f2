"""Staged training: which runs it is made of."""

from dataclasses import dataclass

from fcn.recipes import TrainConfig
from fcn.trunks import TRUNKS
from tasks import stores
from tasks.runs import Run, RunError


@dataclass(frozen=True)
class Stage:
    """One run of a staged training.

    Attributes:
        name: Of the network, "32s".
        run_url: Where the run is kept.
        config: Its settings.
    """

    name: str
    run_url: str
    config: TrainConfig


def plan_stages(run_url: str, config: TrainConfig) -> list[Stage]:
    """The runs that lead from the trunk's coarsest stride to that of ``config``, coarse to fine.

    The first starts from ``config.init``, each further one from the model of the one before. A
    learning rate that is given is the first one's; further ones are multiplied by the recipe's
    stage rate, as they are when it is the recipe's own.

    Args:
        run_url: Where all of it goes; each run into a folder of its name.
        config: Settings of the finest network, and of the others but for what is said above.

    Raises:
        RunError: ``config.at_once``, which is the other way to a fine stride.
        StoreError: ``run_url`` holds credentials.
    """
    if config.at_once:
        raise RunError(
            "at_once trains all strides together, train_staged one after another; give one of "
            "the two: train with at_once, or train_staged without"
        )
    stores.require_no_credentials(run_url)
    strides = sorted((s for s in TRUNKS[config.backbone].nodes if s >= config.stride), reverse=True)
    stages: list[Stage] = []
    for index, stride in enumerate(strides):
        changes: dict[str, object] = {"stride": stride}
        if stages:
            changes["init"] = Run(stages[-1].run_url).model_url
        if config.learning_rate is not None:
            rate = config.learning_rate * config.effective_recipe().stage_rate ** index
            changes["learning_rate"] = rate
        name = f"{stride}s"
        stages.append(Stage(name, stores.join(run_url, name), config.model_copy(update=changes)))
    return stages
