"""The residual stream of an arbitrary module, read from the graph that ``torch.export`` makes.

A node dominates another one if every path from the input to that one passes through it. What dominates the output is
what everything has to pass: the additions among those nodes are the residual stream, and the nearest dominator of such
an addition is its x_l, where shortcut and residual part. `preresnet.propagation.operands` says which is which.
Additions inside a branch dominate nothing and are left out.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from preresnet.propagation import operands
from preresnet.propagation.additions import Pass
from preresnet.propagation.operands import Sum, Term
from preresnet.spec import UserError

_ATEN = torch.ops.aten
_RELUS = {_ATEN.relu.default, _ATEN.relu_.default}


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Graph":
    """The stream of any module that can be exported.

    Args:
        model: with the parameters of the network to be probed, and buffers of its own.
        args: positional arguments; the stream is followed from the first tensor.
        kwargs: keyword arguments.

    Raises:
        UserError: the module cannot be exported, or holds no residual addition.
    """
    try:
        graph = torch.export.export(model, args, kwargs, strict=False).module(check_guards=False)
    except Exception as error:  # whatever a foreign forward pass raises under a tracer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
        cached = "; it returns a cache: add use_cache=False to the batch" if "Cache" in reason else ""
        raise UserError(
            f"torch.export cannot read {type(model).__name__} ({reason}){cached}; or name its residual units: "
            "units=('...', ...), modules that each compute x + F(x)"
        ) from error
    assert isinstance(graph, fx.GraphModule)
    return Graph(graph, type(model).__name__, dict(model.named_parameters()))


class Graph:
    """An exported module whose additions are watched.

    Args:
        module: what was exported.
        title: what to call it in messages.
        parameters: of the module that was exported.
    """

    def __init__(self, module: fx.GraphModule, title: str, parameters: dict[str, Tensor]) -> None:
        self._module = module
        self.parameters = parameters
        nodes = list(module.graph.nodes)
        source = next((node for node in nodes if node.op == "placeholder"), None)
        output = next(node for node in nodes if node.op == "output")
        above = _dominators(nodes, source)
        end: fx.Node | None = _first_result(output, above)
        chain: list[fx.Node] = []
        while end is not None:
            chain.append(end)
            end = above.get(end)
        changing = operands.varying(nodes)
        self._sums: dict[fx.Node, Sum] = {}
        names: dict[str, int] = {}
        for node in reversed(chain):
            x = above.get(node)
            found = None if x is None else operands.taken_apart(node, x, above, changing)
            if found is None:
                continue
            name = operands.place_of(node)
            names[name] = names.get(name, 0) + 1
            found.name = f"{name}.{names[name]}" if names[name] > 1 else name
            found.doubt |= {"unit": found.name} if found.doubt else {}
            self._sums[node] = found
        if not self._sums:
            additions = [node.name for node in nodes if node.target in operands.SUMS]
            raise UserError(
                f"no residual addition found in {title}: of its {len(additions)} additions none is passed by "
                "everything from the first input to the first output. Name its residual units: units=('...', ...), "
                "modules that each compute x + F(x)"
            )
        self._relus = {node: operands.place_of(node) for node in nodes if node.target in _RELUS}
        self._kept = {node for one in self._sums.values() for node in one.nodes()}
        self._functional = {node: new for node in nodes if (new := _out_of_place(node)) is not None}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], taken: Pass) -> Any:
        """One forward pass of the graph, node by node."""
        return _Run(self, taken).run(*args, *kwargs.values())

    @property
    def doubts(self) -> list[dict[str, str]]:
        """Of which units it is uncertain what the shortcut is: ``unit``, ``shortcut``, ``residual``, ``why``."""
        return [one.doubt for one in self._sums.values() if one.doubt]


class _Run(fx.Interpreter):
    def __init__(self, graph: Graph, taken: Pass) -> None:
        super().__init__(graph._module)
        self._graph, self._taken = graph, taken
        self._values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        graph = self._graph
        if n in graph._sums:
            value: Any = self._add(graph._sums[n])
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

    def _add(self, one: Sum) -> Tensor:
        x = self._values[one.x]
        if one.chosen is None:
            measurable = isinstance(x, Tensor) and x.requires_grad
            found = [operands.alignment(self._values[term.node], x) for term in one.terms] if measurable else None
            operands.choose(one, found)
        assert one.chosen is not None
        shortcut, residual = (self._part(one, part) for part in (one.chosen, {*range(len(one.terms))} - one.chosen))
        return self._taken.add(one.name, x, shortcut, residual, self._factor(one, x))

    def _part(self, one: Sum, wanted: Collection[int]) -> Tensor:
        """The sum of some terms; of an operand as it is, where it is made of nothing else."""
        values = []
        for (coefficient, node), group in zip(one.operands, one.groups, strict=True):
            inside = [at for at in group if at in wanted]
            if len(inside) == len(group):
                values.append(_times(coefficient, self.env[node]))
            else:
                values += [_times(one.terms[at].coefficient, self._values[one.terms[at].node]) for at in inside]
        return sum(values[1:], values[0])

    def _factor(self, one: Sum, x: Tensor) -> float | Tensor | None:
        """Lambda where the shortcut is lambda times x_l: a number, or a tensor of as many dimensions as x_l."""
        if not one.pure():
            return None
        found = sum(self._lambda(one.terms[at]) for at in one.chosen or ())
        if not isinstance(found, Tensor):
            return float(found)
        found = found[(None,) * (x.ndim - found.ndim)]
        return None if len(found) > 1 else found  # another one for each sample

    def _lambda(self, term: Term) -> float | Tensor:
        product: float | Tensor = term.coefficient
        for factor, power in term.factors or ():
            value: Any = self._values[factor].detach() if isinstance(factor, fx.Node) else factor
            value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            product = product * value**power
        return product


def _times(number: float, value: Tensor) -> Tensor:
    return value if number == 1 else number * value


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
