"""What going on with a training needs, as the bytes of a safetensors file."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.optim import Optimizer

from fcn.checkpoint import Model, check_fit, read_safetensors
from fcn.errors import CheckpointError
from fcn.model import FCN
from fcn.recipes import TrainConfig
from fcn.weights import Transplant

Nets = Sequence[tuple[FCN, str]]
"""Networks, the trained one first, and what the names of their weights begin with in a state."""


def pack(nets: Nets, optimizer: Optimizer, metadata: Mapping[str, str]) -> bytes:
    """The state of networks and of the optimizer of the first, with further facts."""
    tensors: dict[str, Tensor] = {}
    for net, prefix in nets:
        tensors |= {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    trained, _ = nets[0]
    for name, parameter in trained.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return save_tensors(tensors, dict(metadata))


def unpack(state: bytes, digest: str, nets: Nets, optimizer: Optimizer) -> dict[str, str]:
    """Bring networks and the optimizer of the first to a state, and give its further facts.

    Args:
        state: As `pack` gives it, with `training_digest` among the facts as ``training``.
        digest: Of the training that takes it up.
        nets: As for `pack`.
        optimizer: Of the first network.

    Raises:
        CheckpointError: the state is of another training.
    """
    tensors, metadata = read_safetensors(state)
    if metadata.get("training") != digest:
        raise CheckpointError(
            "the state is of another training: the configuration, the classes or the number "
            "of samples differ"
        )
    for net, prefix in nets:
        weights = _below(prefix, tensors)
        check_fit(net, weights)
        net.load_state_dict(weights)
    trained, _ = nets[0]
    for name, parameter in trained.named_parameters():
        if values := _below(f"optimizer.{name}.", tensors):
            optimizer.state[parameter] = {
                key: _beside(value, parameter) for key, value in values.items()
            }
    return metadata


def transplant_of(state: bytes) -> Transplant:
    """Where the first weights of a training came from, read off its state.

    Raises:
        CheckpointError: The bytes are no state of a training.
    """
    _, metadata = read_safetensors(state)
    try:
        return Transplant.model_validate_json(metadata["transplant"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"not the state of a training: {error}") from error


def training_digest(model: Model, config: TrainConfig, num_samples: int) -> str:
    """Digest of all that a state must share with the training that takes it up."""
    facts = [config.decisive(), model.classes.to_json(), model.classes.ignore_index, num_samples]
    if model.further_classes:
        facts += [[name, c.to_json()] for name, c in model.further_classes.items()]
    if model.input.bands:
        facts.append([vars(band) for band in model.input.bands])
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _beside(value: Tensor, parameter: Tensor) -> Tensor:
    """An optimizer's tensor on its parameter's device; step counters stay on the CPU."""
    return value if value.ndim == 0 else value.to(parameter.device)
