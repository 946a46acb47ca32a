"""The residual additions of a network, and what enters each of them in one pass.

They are found in three ways, tried in this order: units that the user names; the joins of a network of this package;
the graph that ``torch.export`` makes of any other module (`preresnet.propagation.graphs`). All give the same: the
additions along the one stream that everything from input to output has to pass, each with its shortcut and its
residual.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from preresnet.model import memory
from preresnet.model.network import Network, set_fused
from preresnet.model.preactivation import Norm
from preresnet.model.shortcuts import DropoutJoin, IdentityJoin, ScaledJoin, ZeroPad
from preresnet.model.units import ResidualUnit
from preresnet.propagation import graphs, inputs
from preresnet.propagation.additions import Pass, Stream
from preresnet.spec import UserError


def twin(model: nn.Module) -> nn.Module:
    """The same network: parameters of its own that share the model's values, and copies of buffers and hooks.

    What a pass leaves in buffers (statistics of norms) stays there, and what hangs on the model's parameters
    (gradients, hooks) is never touched.
    """
    shared: dict[int, Any] = {}
    for name, one in model.named_parameters():
        if isinstance(one, nn.parameter.UninitializedParameter):
            raise UserError(f"parameter {name!r} has no shape yet; call the network once before it is probed")
        if one.is_meta:
            raise UserError(f"parameter {name!r} is on the meta device, without values; load weights first")
        if one.is_inference():
            raise UserError(
                f"parameter {name!r} was made inside torch.inference_mode(), so that nothing can be differentiated; "
                "build and load the network outside of it"
            )
        shared[id(one)] = nn.Parameter(one.detach(), requires_grad=one.requires_grad)
    for module in model.modules():  # activations that a module keeps: tensors of a graph cannot be copied
        shared |= {
            id(one): one.detach() for one in vars(module).values() if isinstance(one, Tensor) and not one.is_leaf
        }
    try:
        return copy.deepcopy(model, shared)
    except Exception as error:  # modules may hold anything: locks, open files, tensors of a graph
        raise UserError(
            f"cannot copy the structure of {type(model).__name__} ({type(error).__name__}: {error}); "
            "a probe works on a copy that shares the parameters. Take out of the module what cannot be copied"
        ) from None


def find(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    units: Sequence[str] = (),
    *,
    training: bool,
) -> Stream:
    """The stream of a network.

    Args:
        model: never changed.
        args: an example of its positional arguments; the stream is that of the first.
        kwargs: an example of its keyword arguments.
        units: names of modules that each compute x + F(x); given, nothing is searched.
        training: whether norms use the statistics of the batch, and dropout drops.

    Raises:
        UserError: no residual addition was found, a name fits no module, or the network fails on this example.
    """
    other = twin(model).train(training)
    if units:
        return _Named(other, units)
    if isinstance(other, Network):
        return _Joined(other)
    try:
        return graphs.exported(other, args, kwargs)
    except UserError:
        with torch.no_grad():
            inputs.call(other.forward, other, args, kwargs)  # is it the batch that cannot be used?
        raise


class _Joined:
    """A network of this package: every join tells its two summands."""

    def __init__(self, model: Network) -> None:
        set_fused(model, False)  # plain operations: a part of the graph can be differentiated on its own
        memory.set_plan(model, "plain")
        self._model = model
        self._taken = Pass()
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.doubts: list[dict[str, str]] = []
        for name, module in model.named_modules():
            if isinstance(module, ResidualUnit):
                module.join = _Watched(name, module.join, self.note)
            if isinstance(module, nn.ReLU) or (isinstance(module, Norm) and module.relu):
                module.register_forward_hook(partial(self._relu, name))

    def _relu(self, name: str, _: nn.Module, __: Any, y: Tensor) -> None:
        self._taken.relu(name, y)

    def note(self, name: str, join: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
        shortcut, residual = join.parts(x, residual)  # type: ignore[operator]
        dtype = residual.dtype
        h = getattr(join, "shortcut", nn.Identity())
        factor, reference = None, None
        if isinstance(h, ZeroPad):
            with torch.no_grad():
                reference = h(x)
        elif isinstance(h, nn.Identity):
            factor = _factor(join)
        return self._taken.add(name, x, shortcut, residual, factor, reference).to(dtype)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], taken: Pass) -> Any:
        self._taken = taken
        return self._model(*args, **kwargs)


def _factor(join: nn.Module) -> float | None:
    """Lambda of a join whose shortcut is lambda x; None where it depends on x or on random numbers."""
    if isinstance(join, IdentityJoin):
        return 1.0
    if isinstance(join, ScaledJoin):
        return float(join.scale.shortcut)
    if isinstance(join, DropoutJoin) and not join.training:
        return 1.0 if join.rescale else 1.0 - join.dropout.p
    return None


class _Watched(nn.Module):
    """Stands in a unit of a twin where its join was."""

    def __init__(self, name: str, join: nn.Module, note: Callable[..., Tensor]) -> None:
        super().__init__()
        self.name, self.join, self._note = name, join, note

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self._note(self.name, self.join, x, residual)


class _Named:
    """Units named by the user: what leaves is what enters plus a residual."""

    def __init__(self, model: nn.Module, units: Sequence[str]) -> None:
        modules = dict(model.named_modules())
        missing = [name for name in units if not modules.get(name)]
        if missing:
            some = ", ".join(name for name in list(modules)[1:12])
            raise UserError(f"no module {', '.join(map(repr, missing))}; this network has {some}, ...")
        self._model = model
        self._taken = Pass()
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.doubts: list[dict[str, str]] = []
        for name in units:
            modules[name].register_forward_hook(partial(self._note, name))
        for name, module in modules.items():
            if isinstance(module, nn.ReLU):
                module.register_forward_hook(partial(self._relu, name))

    def _relu(self, name: str, _: nn.Module, __: Any, y: Tensor) -> None:
        self._taken.relu(name, y)

    def _note(self, name: str, _: nn.Module, args: tuple[Any, ...], y: Any) -> Any:
        x, result = args[0] if args else None, y[0] if isinstance(y, tuple) else y
        if not (isinstance(x, Tensor) and isinstance(result, Tensor)):
            raise UserError(f"unit {name!r} does not take and give a tensor first; name modules that do")
        if x.shape != result.shape:
            raise UserError(
                f"unit {name!r} changes the shape from {tuple(x.shape)} to {tuple(result.shape)}, so it is not "
                "x + F(x); name only units whose shapes agree, or none, to have the additions found"
            )
        total = self._taken.add(name, x, x, result - x, 1.0)
        return (total, *y[1:]) if isinstance(y, tuple) else total

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], taken: Pass) -> Any:
        self._taken = taken
        return self._model(*args, **kwargs)


@contextmanager
def same_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """All generators start from ``seed`` inside (PyTorch's, NumPy's, Python's), and are as they were afterwards."""
    devices = [device] if device.type == "cuda" else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
