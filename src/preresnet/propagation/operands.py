"""One addition of a graph taken apart: its terms, and which of them are the shortcut.

A sum may be nested, scaled and subtracted: ``0.5 * x + F``, ``x - F``, ``F + (G + x)``, ``torch.add(F, x, alpha=2)``.
Taken apart it is a list of terms with coefficients, whose order means nothing. The shortcut is, by the first rule that
tells terms apart,

1. every constant multiple of x_l, and x_l times a gate, where there are others;
2. the one term whose derivative with respect to x_l has a cosine of 1/2 or more with the identity;
3. the term with the fewest weight layers, then the fewest parameters.

Where rules 2 and 3 disagree, or two terms have equally many weight layers, the choice is in doubt and says so.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

ALONG = 0.5  # cosine; dropout of half the elements has 0.71 with the identity, a random convolution 0
EXACT_ELEMENTS = 256  # of x_l, up to which a derivative is measured whole
MEASURED_ELEMENTS = 2**14  # of random directions above that: a cosine to about 1 %

_ATEN = torch.ops.aten
SUMS = {_ATEN.add.Tensor: 1, _ATEN.add_.Tensor: 1, _ATEN.sub.Tensor: -1, _ATEN.sub_.Tensor: -1}
_PRODUCTS = {_ATEN.mul.Tensor, _ATEN.mul_.Tensor, _ATEN.mul.Scalar}
_QUOTIENTS = {_ATEN.div.Tensor, _ATEN.div_.Tensor, _ATEN.div.Scalar}
_NEGATIVE = {_ATEN.neg.default, _ATEN.neg_.default}
_COPIES = {
    _ATEN.clone.default,
    _ATEN.contiguous.default,
    _ATEN.alias.default,
    _ATEN.to.dtype,
    _ATEN.to.dtype_layout,
    _ATEN._to_copy.default,
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN.expand.default,
}
_DROPOUTS = {_ATEN.dropout.default, _ATEN.dropout_.default, _ATEN.feature_dropout.default}
_WEIGHTED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "scaled_dot_product", "baddbmm", "einsum", "lstm", "gru")

Factor = tuple[float | fx.Node, int]  # a number, parameter or buffer, and its power: 1, or -1 where it divides


@dataclass(frozen=True)
class Term:
    """A term of a sum.

    Args:
        node: what is added.
        coefficient: the number in front of it.
        follows: whether it depends on the input.
        factors: where it is x_l times these constants; None otherwise.
        gated: whether it is x_l times something that depends on the input, too.
    """

    node: fx.Node
    coefficient: float
    follows: bool
    factors: tuple[Factor, ...] | None
    gated: bool


@dataclass
class Sum:
    """An addition of the stream.

    Args:
        name: of its unit.
        x: x_l, where shortcut and residual part.
        operands: both, with their coefficients.
        groups: for each operand, which terms it is made of.
        terms: all of them.
        chosen: indices of the shortcut's terms; None until values are there to measure.
        doubt: what was chosen between, and why it is uncertain; empty where it is not.
    """

    name: str
    x: fx.Node
    operands: list[tuple[float, fx.Node]]
    groups: list[list[int]]
    terms: list[Term]
    chosen: frozenset[int] | None = None
    doubt: dict[str, str] = field(default_factory=dict)

    def nodes(self) -> set[fx.Node]:
        """Whose values an addition needs."""
        constants = {one for term in self.terms for one, _ in term.factors or () if isinstance(one, fx.Node)}
        return {self.x, *(term.node for term in self.terms), *constants}

    def pure(self) -> bool:
        """Whether the shortcut is made of constant multiples of x_l alone."""
        return all(self.terms[one].factors is not None and not self.terms[one].gated for one in self.chosen or ())


def varying(nodes: Collection[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on an input, or on random numbers; all others are constants."""
    found: set[fx.Node] = set()
    for node in nodes:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op == "placeholder" or random or any(one in found for one in node.all_input_nodes):
            found.add(node)
    return found


def shape(node: fx.Node) -> torch.Size | None:
    """Of a tensor; None for anything else."""
    return getattr(node.meta.get("val"), "shape", None)


def taken_apart(node: fx.Node, x: fx.Node, follows: Collection[fx.Node], changing: Collection[fx.Node]) -> Sum | None:
    """An addition of two activations of one shape, at least one of which is more than a multiple of x_l.

    Args:
        node: of any operation.
        x: the last node before it that everything passes.
        follows: nodes that depend on the first input.
        changing: nodes that depend on any, from `varying`.
    """
    operands = _summands(node)
    if operands is None or len(operands) != 2:
        return None
    (_, a), (_, b) = operands
    size = shape(a)
    if a is b or a not in follows or b not in follows or size is None or size != shape(b) or len(size) < 2:
        return None
    found = Sum("", x, operands, [], [])
    for coefficient, operand in operands:
        terms = [
            Term(one, number, one in follows, *_along(one, x, size, changing))
            for number, one in _terms(operand, x, coefficient, size)
        ]
        found.groups.append(list(range(len(found.terms), len(found.terms) + len(terms))))
        found.terms += terms
    exact = {at for at, one in enumerate(found.terms) if one.factors is not None and not one.gated}
    gated = {at for at, one in enumerate(found.terms) if one.gated}
    others = {at for at, one in enumerate(found.terms) if at not in exact | gated and one.follows}
    if exact | gated and others:
        found.chosen = frozenset(exact | gated)
    elif exact and gated:
        found.chosen = frozenset(exact)
    elif len({found.terms[at].node for at in others or gated}) < 2:
        return None  # copies of one signal: no residual
    elif size != shape(x):
        if all(weights(found.terms[at].node, x)[:2] == (0, 0) for at in others):
            return None  # two ways of pooling
        choose(found, None)
    return found


# --- terms --------------------------------------------------------------------------------------------------------


def _terms(node: fx.Node, x: fx.Node, coefficient: float, size: torch.Size) -> list[tuple[float, fx.Node]]:
    if node is x or shape(node) != size:
        return [(coefficient, node)]
    parts = _summands(node) or _scaled(node, size)
    if not parts:
        return [(coefficient, node)]
    return [term for number, one in parts for term in _terms(one, x, coefficient * number, size)]


def _summands(node: fx.Node) -> list[tuple[float, fx.Node]] | None:
    """Of a sum or difference: operands with the numbers in front of them."""
    if node.target not in SUMS or len(node.args) < 2:
        return None
    a, b = node.args[:2]
    alpha = node.kwargs.get("alpha", 1)
    if not isinstance(a, fx.Node) or not isinstance(alpha, int | float):
        return None
    if isinstance(b, int | float):
        return [(1.0, a)] if b == 0 else None  # Python's sum() starts with 0
    return [(1.0, a), (float(alpha * SUMS[node.target]), b)] if isinstance(b, fx.Node) else None  # type: ignore[index]


def _scaled(node: fx.Node, size: torch.Size) -> list[tuple[float, fx.Node]] | None:
    """Of a multiple of one tensor by a number: the number and the tensor."""
    first, second = (*node.args[:2], None, None)[:2]
    if node.target in _PRODUCTS and isinstance(first, int | float) and isinstance(second, fx.Node):
        first, second = second, first
    if not isinstance(first, fx.Node) or shape(first) != size:
        return None
    if _copies(node):
        return [(1.0, first)]
    if node.target in _NEGATIVE:
        return [(-1.0, first)]
    if node.target in _PRODUCTS and isinstance(second, int | float):
        return [(float(second), first)]
    if node.target in _QUOTIENTS and isinstance(second, int | float) and second:
        return [(1.0 / second, first)]
    return None


def _copies(node: fx.Node) -> bool:
    """Whether a node has the values of its first argument, which is of its shape."""
    if node.target in _DROPOUTS:
        return not (node.args[2] and node.args[1])
    return node.target in _COPIES


def _along(
    node: fx.Node, x: fx.Node, size: torch.Size, changing: Collection[fx.Node]
) -> tuple[tuple[Factor, ...] | None, bool]:
    """The constants that x_l is multiplied with, and whether it is multiplied with anything else too."""
    if shape(node) != size:
        return None, False
    if node is x:
        return (), False
    scaled = _scaled(node, size)
    if scaled is not None:
        ((number, one),) = scaled
        factors, gated = _along(one, x, size, changing)
        return None if factors is None else (*factors, (number, 1)), gated
    pairs = [node.args[:2]] if node.target in _PRODUCTS | _QUOTIENTS else []
    pairs += [pairs[0][::-1]] if node.target in _PRODUCTS else []
    for one, other in pairs:
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            factors, gated = _along(one, x, size, changing)
            if factors is not None and other in changing:
                return factors, True
            if factors is not None:
                return (*factors, (other, 1 if node.target in _PRODUCTS else -1)), gated
    return None, False


# --- the choice ---------------------------------------------------------------------------------------------------


def choose(found: Sum, alignments: Sequence[float] | None) -> None:
    """Decide what the shortcut is, by rules 2 and 3.

    Args:
        found: whose ``chosen`` and ``doubt`` are set.
        alignments: `alignment` of each term; None where nothing can be measured.
    """
    sizes = [weights(term.node, found.x) for term in found.terms]
    measured = alignments or [0.0] * len(sizes)
    candidates = [at for at, term in enumerate(found.terms) if term.follows]

    def rank(at: int) -> tuple[object, ...]:
        layers, parameters, operations, names = sizes[at]
        return layers, parameters, -measured[at], operations, names, -abs(found.terms[at].coefficient)

    along = [at for at in candidates if measured[at] >= ALONG]
    first, second = sorted(candidates, key=rank)[:2]
    best, why = first, ""
    if len(along) == 1:
        (best,) = along
        if sizes[best][0] > sizes[first][0]:
            why = "it is nearest to a multiple of x, but has more weight layers than another"
    elif sizes[first][0] == sizes[second][0]:
        why = "another has as many weight layers"
        why += " and parameters" if sizes[first][1] == sizes[second][1] else ""
    found.chosen = frozenset([best])
    if why:

        def words(at: int) -> str:
            layers, parameters, _, _ = sizes[at]
            cosine = "" if alignments is None else f", cosine {measured[at]:.2f} with x"
            place = f"{found.terms[at].node.name} in {place_of(found.terms[at].node)}"
            return f"{place} ({layers} weight layers, {parameters} parameters{cosine})"

        rest = " + ".join(words(at) for at in candidates if at != best)
        found.doubt = {"unit": found.name, "shortcut": words(best), "residual": rest, "why": why}


def alignment(y: Tensor, x: Tensor) -> float:
    """How near dy/dx is to a multiple of the identity: |tr J| / (sqrt(n) |J|), 1 for any multiple and 0 for none.

    Measured whole for few elements; otherwise along random signs v, where v J v has the mean tr J, and |J v|^2 |J|^2.

    Args:
        y: of the shape of x; its graph is kept.
        x: in whose graph it lies.
    """
    if not y.requires_grad or not x.requires_grad or y.shape != x.shape:
        return 0.0
    if y is x:
        return 1.0
    elements = x.numel()
    if elements <= EXACT_ELEMENTS:
        directions, drawn = torch.eye(elements), 1
    else:
        drawn = math.ceil(MEASURED_ELEMENTS / elements)
        source = torch.Generator().manual_seed(0)
        directions = torch.randint(2, (drawn, elements), generator=source, dtype=torch.int8) * 2.0 - 1
    trace = squares = 0.0
    for direction in directions:
        v = direction.to(y).view(x.shape)
        (u,) = torch.autograd.grad(y, x, v, retain_graph=True, allow_unused=True)
        if u is None:
            return 0.0
        trace += float((u.double() * v.double()).sum())
        squares += float(u.double().square().sum())
    return abs(trace) / math.sqrt(elements * drawn * squares) if squares else 0.0


def weights(node: fx.Node, x: fx.Node) -> tuple[int, int, int, tuple[str, ...]]:
    """Between x and a node: weight layers, parameters, operations that lead to x, and names of parameters."""
    seen: set[fx.Node] = set()
    stack, layers, parameters, operations, names = [node], 0, 0, 0, []
    while stack:
        one = stack.pop()
        if one is x or one in seen:
            continue
        seen.add(one)
        if one.op == "get_attr":
            parameters += getattr(one.meta.get("val"), "numel", lambda: 0)()
            names.append(str(one.target))
            continue
        operations += 1
        layers += any(word in str(one.target) for word in _WEIGHTED)
        stack.extend(one.all_input_nodes)
    return layers, parameters, operations, tuple(sorted(names))


def place_of(node: fx.Node) -> str:
    """The module in whose forward pass a node was made."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [value[0] for value in stack.values()]
    return (paths[-1].split("@")[0] if paths else "") or node.name
