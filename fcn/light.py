"""What a start leaves out: PyTorch's compiler, and random weights for those that a file brings.

``torchvision.ops`` asks ``torch._dynamo.utils`` whether a kernel of its could be compiled, and with
that a process imports a thousand modules: two fifths of the time that PyTorch and torchvision
take together. While torchvision is imported, a module of that name stands in, which imports the
real one as soon as anything is asked of it, such as one of its modules by another thread. Random
numbers on the device "meta" import it too.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_RANDOM = (Tensor.normal_, Tensor.uniform_)  # where an initialiser asks for no leave

_NAMES = ("torch._dynamo", "torch._dynamo.utils")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Have what is imported in a ``with`` block not import PyTorch's compiler, unless it is used.

    Nothing changes where it is imported already.
    """
    if _NAMES[0] in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name) for name in _NAMES}

    leaving = threading.Lock()  # the real ones may be asked for by several threads at once

    def leave() -> bool:
        """Take the stand-ins away; whether they were there."""
        with leaving:
            there = [name for name, module in stand_ins.items() if sys.modules.get(name) is module]
            for name in there:
                del sys.modules[name]
            return bool(there)

    def is_compile_supported(device_type: str) -> Any:
        leave()
        return import_module(_NAMES[1]).is_compile_supported(device_type)

    def real(module: str, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # what the import system itself looks for
        leave()
        return getattr(import_module(module), name)

    for name, module in stand_ins.items():
        vars(module)["__getattr__"] = partial(real, name)
    package, utils = stand_ins.values()
    vars(package).update(__path__=[], utils=utils)
    vars(utils).update(is_compile_supported=is_compile_supported)
    finder = _Submodules(leave)
    sys.meta_path.insert(0, finder)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        leave()
        sys.meta_path.remove(finder)


class _Submodules(MetaPathFinder):
    """Finds the modules of the compiler while a stand-in, which has none, is in its place.

    Args:
        leave: Takes it away, and tells whether it was there.
    """

    def __init__(self, leave: Callable[[], bool]) -> None:
        self._leave = leave

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        """What the import system asks of every module that is not imported yet."""
        if not fullname.startswith(f"{_NAMES[0]}.") or not self._leave():
            return None
        return ModuleSpec(fullname, _Imported(import_module(fullname)))


class _Imported(Loader):
    """Gives the import system a module that has been imported meanwhile."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, _: ModuleSpec) -> ModuleType:
        """The module, as it is."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but what the import system has changed about it."""
        module.__spec__ = self._spec


class Uninitialised(TorchFunctionMode):
    """Has initialisers and random numbers leave tensors as they are in a ``with`` block."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # what PyTorch calls
        """Call a function, unless it is an initialiser."""
        if getattr(func, "__module__", None) == "torch.nn.init" or func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
