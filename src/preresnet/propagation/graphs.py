"""Which additions of an arbitrary module form its residual stream, read from the graph that ``torch.export`` makes?

A node dominates another one if every path from the input to that one passes through it. What dominates the output is
what everything has to pass: the additions among those nodes are the residual stream, and the nearest dominator of such
an addition is its x_l, where shortcut and residual part. Of the two operands the shortcut is the one with fewer weight
layers behind x_l. Additions inside a branch dominate nothing and are left out.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from preresnet.propagation.additions import Pass
from preresnet.spec import UserError

_ATEN = torch.ops.aten
_ADDITIONS = {_ATEN.add.Tensor, _ATEN.add_.Tensor, operator.add, operator.iadd, torch.add}
_WEIGHTED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "scaled_dot_product", "baddbmm")
_RELUS = {_ATEN.relu.default, _ATEN.relu_.default}


def exported(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> "Graph":
    """The stream of any module that can be exported.

    Args:
        model: with the parameters of the network to be probed, and buffers of its own.
        inputs: positional arguments; the stream is followed from the first tensor.
        kwargs: keyword arguments.

    Raises:
        ValueError: the module cannot be exported, or holds no residual addition.
    """
    try:
        graph = torch.export.export(model, inputs, kwargs, strict=False).module(check_guards=False)
    except Exception as error:  # whatever a foreign forward pass raises under a tracer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        cached = "; it returns a cache: add use_cache=False to the batch" if "Cache" in reason else ""
        raise UserError(
            f"torch.export cannot read {type(model).__name__} ({reason}){cached}; or name its residual units: "
            "units=('...', ...), modules that each compute x + F(x)"
        ) from None
    assert isinstance(graph, fx.GraphModule)
    return Graph(graph, type(model).__name__)


class Graph:
    """An exported module whose additions are watched.

    Args:
        module: what was exported.
        title: what to call it in messages.
    """

    def __init__(self, module: fx.GraphModule, title: str) -> None:
        self._module = module
        nodes = list(module.graph.nodes)
        source = next((node for node in nodes if node.op == "placeholder"), None)
        output = next(node for node in nodes if node.op == "output")
        above = _dominators(nodes, source)
        end: fx.Node | None = _first_result(output, above)
        chain: list[fx.Node] = []
        while end is not None:
            chain.append(end)
            end = above.get(end)
        self._units: dict[
            fx.Node, tuple[str, fx.Node, int]
        ] = {}  # addition -> name, x_l, which operand is the shortcut
        names: dict[str, int] = {}
        for node in reversed(chain):
            operands = _operands(node, above)
            x = above.get(node)
            if operands is None or x is None:
                continue
            weights = [_weights(operand, x) for operand in operands]
            if weights[0] == weights[1] == (0, 0):
                continue  # two copies of one signal without a weight between: no residual
            name = _place(node)
            names[name] = names.get(name, 0) + 1
            self._units[node] = (f"{name}.{names[name]}" if names[name] > 1 else name, x, int(weights[1] <= weights[0]))
        if not self._units:
            additions = [node.name for node in nodes if node.target in _ADDITIONS]
            raise UserError(
                f"no residual addition found in {title}: of its {len(additions)} additions none is passed by "
                "everything from the first input to the first output. Name its residual units: units=('...', ...), "
                "modules that each compute x + F(x)"
            )
        self._relus = {node: _place(node) for node in nodes if node.target in _RELUS}
        self._kept = {x for _, x, _ in self._units.values()}
        self._functional = {node: new for node in nodes if (new := _out_of_place(node)) is not None}

    def run(self, inputs: tuple[Any, ...], kwargs: dict[str, Any], taken: Pass) -> Any:
        """One forward pass of the graph, node by node."""
        return _Run(self, taken).run(*inputs, *kwargs.values())


class _Run(fx.Interpreter):
    def __init__(self, graph: Graph, taken: Pass) -> None:
        super().__init__(graph._module)
        self._graph, self._taken = graph, taken
        self._values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        graph = self._graph
        if n in graph._units:
            name, x_node, which = graph._units[n]
            operands = self.fetch_args_kwargs_from_env(n)[0]
            x, shortcut, residual = self._values[x_node], operands[which], operands[1 - which]
            factor = 1.0 if n.all_input_nodes[which] is x_node else None
            value: Any = self._taken.add(name, x, shortcut, residual, factor)
        elif n in graph._functional:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = graph._functional[n](*args, **kwargs)
        else:
            value = super().run_node(n)
        if n in graph._relus and isinstance(value, Tensor):
            self._taken.relu(f"{graph._relus[n]}:{n.name}", value)
        if n in graph._kept:
            self._values[n] = value
        return value


def _dominators(nodes: Sequence[fx.Node], source: fx.Node | None) -> dict[fx.Node, fx.Node | None]:
    """For each node that depends on ``source``, its nearest dominator."""
    above: dict[fx.Node, fx.Node | None] = {}
    level: dict[fx.Node, int] = {}
    for node in nodes:
        if node is source:
            above[node], level[node] = None, 0
            continue
        before = [one for one in node.all_input_nodes if one in above]
        if not before:
            continue
        meet = before[0]
        for other in before[1:]:
            one = other
            while meet is not one:  # climb from the deeper of the two
                if level[meet] >= level[one]:
                    meet = above[meet] or meet
                else:
                    one = above[one] or one
        above[node], level[node] = meet, level[meet] + 1
    return above


def _first_result(output: fx.Node, above: dict[fx.Node, fx.Node | None]) -> fx.Node | None:
    return next((node for node in output.all_input_nodes if node in above), None)


def _operands(node: fx.Node, above: dict[fx.Node, fx.Node | None]) -> tuple[fx.Node, fx.Node] | None:
    """Both operands of an addition of two activations of one shape."""
    if node.target not in _ADDITIONS or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return None
    a, b = node.args
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node) and a in above and b in above and a is not b):
        return None
    shapes = [getattr(one.meta.get("val"), "shape", None) for one in (a, b)]
    return (a, b) if shapes[0] is not None and shapes[0] == shapes[1] and len(shapes[0]) >= 2 else None


def _weights(node: fx.Node, x: fx.Node) -> tuple[int, int]:
    """Weight layers, and parameters, between x and a node."""
    seen: set[fx.Node] = set()
    stack, layers, parameters = [node], 0, 0
    while stack:
        one = stack.pop()
        if one is x or one in seen:
            continue
        seen.add(one)
        if one.op == "get_attr":
            parameters += getattr(one.meta.get("val"), "numel", lambda: 0)()
            continue
        layers += any(word in str(one.target) for word in _WEIGHTED)
        stack.extend(one.all_input_nodes)
    return layers, parameters


def _place(node: fx.Node) -> str:
    """The module in whose forward pass a node was made."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [value[0] for value in stack.values()]
    return (paths[-1].split("@")[0] if paths else "") or node.name


def _out_of_place(node: fx.Node) -> Any:
    """The operation that does the same without overwriting what enters, for nodes whose input nobody reads later."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.split("::")[1]
    first = node.args[0] if node.args else None
    if not name.endswith("_") or not isinstance(first, fx.Node) or first.op in ("get_attr", "placeholder"):
        return None
    if any(user is not node and _comes_after(user, node) for user in first.users):
        return None
    packet = getattr(_ATEN, name[:-1], None)
    return getattr(packet, target._overloadname, None)


def _comes_after(node: fx.Node, other: fx.Node) -> bool:
    return other < node
