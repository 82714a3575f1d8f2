"""Trains over ranks that are forks of one process, talking through gloo.

``python -m tests.fcn.ranks`` reads a case a line (see `Case`) and answers each with a line:
``[{"losses": …, "images": …} or {"error": …} for each rank]``. The state of every rank is left
in ``folder/rank-0``, …
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from fcn.errors import FcnError
from fcn.parallel import World, share_statistics
from fcn.recipes import TrainConfig
from tests.fcn.scenes import CLASSES, Pair, squares
from tests.fcn.trainers import relabelled, trainer, two_headed


@dataclass(frozen=True)
class Case:
    """A training over ``size`` ranks.

    Attributes:
        config: Of the training, as JSON.
        samples: A name of `SAMPLES`; or "two heads", labelled twice; or "normalise", for a batch
            normalisation alone.
        size: How many ranks.
        folder: For the states.
        state: File of the state to go on from.
        stop: Steps to take; None is all of them.
        dropout: Leave dropout in the network.
        overflow: Rank whose gradient is infinite in the first step.
        ignore_index: Label of the pixels without a class.
    """

    config: str
    samples: str
    size: int
    folder: str
    state: str | None = None
    stop: int | None = None
    dropout: bool = False
    overflow: int | None = None
    ignore_index: int = 255

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def uneven() -> list[Pair]:
    """Eleven pairs of two sizes that differ in labelled pixels."""
    rows = (0, 9, 35, 3, 20, 1, 0, 30, 2, 5, 8)
    pairs = [*squares(6), *squares(5, (40, 30), seed=1)]
    return [relabelled(pair, 255, count) for pair, count in zip(pairs, rows, strict=True)]


SAMPLES = {
    "uneven": uneven(),
    "mostly blank": [*(relabelled(pair, 255) for pair in squares(5)), *squares(1)],
    "squares": squares(10),
    "one": [relabelled(pair, 0) for pair in squares(1)],
}


def run(case: Case, world: World) -> dict[str, Any]:
    """What one rank did."""
    state = Path(case.state).read_bytes() if case.state else None
    config = TrainConfig.model_validate_json(case.config)
    try:
        if case.samples == "two heads":
            training = two_headed(config, state, uneven(), world=world)
        else:
            classes = replace(CLASSES, ignore_index=case.ignore_index)
            training = trainer(config, SAMPLES[case.samples], state, classes=classes, world=world)
        for layer in training.net.modules():
            if isinstance(layer, nn.Dropout) and not case.dropout:
                layer.p = 0
        if case.overflow == world.rank:
            layer = training.net.get_parameter("score_fr.weight")
            layer.register_hook(lambda g: g * float("inf") if training.step == 0 else g)
        steps = []
        for step in training.run():
            steps.append(step)
            if step.step == case.stop:
                break
    except FcnError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    Path(case.folder, f"rank-{world.rank}").write_bytes(training.state())
    return {
        "losses": [step.loss for step in steps],
        "images": [step.num_images for step in steps],
        "skipped": [step.skipped for step in steps],
    }


def normalise(case: Case, world: World) -> dict[str, Any]:
    """What a shared batch normalisation makes of this rank's share of four images."""
    torch.manual_seed(0)
    images = torch.randn(4, 5, 3, 2, dtype=torch.float64)
    share = torch.split(images, [3, 1, 0])[world.rank].clone().requires_grad_()
    net = nn.Sequential(nn.BatchNorm2d(5, dtype=torch.float64))
    (norm,) = share_statistics(net, torch.device("cpu"))
    output = norm(share)
    output.pow(3).sum().backward()
    found = {"output": output.detach(), "gradient": share.grad, **dict(norm.named_buffers())}
    found |= {name: parameter.grad for name, parameter in norm.named_parameters()}
    torch.save(found, Path(case.folder, f"rank-{world.rank}"))
    return {}


def rank(case: Case, number: int, answer: int) -> None:
    meeting = f"file://{case.folder}/meeting"
    patience = timedelta(seconds=60)
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=number, world_size=case.size, timeout=patience
    )
    do = normalise if case.samples == "normalise" else run
    result = do(case, World(number, case.size))
    os.write(answer, json.dumps(result).encode())
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        case = Case(**json.loads(line))
        Path(case.folder, "meeting").unlink(missing_ok=True)
        results, children = [], []
        for number in range(case.size):
            read, write = os.pipe()
            child = os.fork()
            if not child:
                rank(case, number, write)
            os.close(write)
            results.append(read)
            children.append(child)
        answers = []
        for read in results:
            with os.fdopen(read, "rb") as file:
                answers.append(json.loads(file.read() or b'{"error": "died"}'))
        for child in children:
            os.waitpid(child, 0)
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
