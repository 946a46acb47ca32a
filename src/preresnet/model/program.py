"""A few images through folded residual units in one call.

`folding` leaves a sequence of units whose convolutions carry what follows them. For one image, calling a library for
each takes longer than the arithmetic. Here the sequence becomes a list of steps for ``program.cpp``, with every address
in it. Units that it cannot express (gates, scaled or absent shortcuts) or that it would not make faster (weights beyond
the cache) leave the whole network to `folding`.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from preresnet.kernels import native
from preresnet.model.folding import Affine, Classifier, FoldedConv, FoldedUnit
from preresnet.model.shortcuts import IdentityJoin, Projection, ZeroPad, same_border

WIDTH = 16  # channels are padded to a multiple of it: a vector of the widest processors, several of others
CACHED = 256 << 10  # bytes of a convolution's weights, which each row of the result reads again
SHAPES = 4  # input shapes whose programs are kept


class _Step(ctypes.Structure):
    """As in ``program.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "plus", "out", "activated")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale", "shift", "next_scale", "next_shift")),
        *((name, ctypes.c_long) for name in ("images", "height", "width", "channels", "in_channels")),
        *((name, ctypes.c_long) for name in ("kernel", "stride", "in_pixel", "in_row", "in_image")),
        *((name, ctypes.c_long) for name in ("plus_stride", "plus_channels", "plus_row", "plus_image")),
        *((name, ctypes.c_long) for name in ("group", "relu", "after_relu", "next_relu")),
        *((name, ctypes.c_long) for name in ("half", "half_plus", "half_out", "half_activated")),
    ]


class Map:
    """A feature map with a border of zeros one pixel wide, its channels padded to whole vectors.

    Args:
        shape: (n, c, h, w) of what it stands for.
        dtype: float32 or bfloat16.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        images, self.channels, height, width = shape
        self.padded = -(-self.channels // WIDTH) * WIDTH
        self.pixels = torch.zeros(images, height + 2, width + 2, self.padded, dtype=dtype)
        self.inside = self.pixels[:, 1:-1, 1:-1, : self.channels].permute(0, 3, 1, 2)  # (n, c, h, w)
        self.row, self.image = self.pixels.stride(1), self.pixels.stride(0)

    @property
    def start(self) -> int:
        """Address of the first pixel inside the border."""
        return self.pixels[0, 1, 1].data_ptr()

    @property
    def half(self) -> bool:
        """Whether it is bfloat16."""
        return self.pixels.dtype == torch.bfloat16


@dataclass
class _Builder:
    """Steps, and everything that has to live as long as their addresses are used."""

    weights: dict[FoldedConv, Tensor]
    steps: list[_Step] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    free: dict[tuple[object, ...], list[Map]] = field(default_factory=dict)

    def map(self, shape: Sequence[int], dtype: torch.dtype) -> Map:
        """A map that nobody uses; its border is zero, its inside is anything."""
        waiting = self.free.setdefault((*shape, dtype), [])
        return waiting.pop() if waiting else Map(shape, dtype)

    def done(self, *maps: Map | None) -> None:
        """Nobody reads these any more."""
        for used in {id(one): one for one in maps if one is not None}.values():
            images, height, width, _ = used.pixels.shape
            key = images, used.channels, height - 2, width - 2, used.pixels.dtype
            self.free.setdefault(key, []).append(used)

    def vector(self, values: Tensor | None, padded: int) -> int | None:
        """The address of (c,) values, padded with zeros."""
        if values is None:
            return None
        held = torch.zeros(padded)
        held[: len(values)] = values
        self.kept.append(held)
        return held.data_ptr()

    def convolve(
        self,
        conv: FoldedConv,
        source: Map,
        out: Map | None,
        activated: Map | None = None,
        *,
        plus: tuple[Map, int] | None = None,
        after: nn.Module | None = None,
        following: nn.Module | None = None,
    ) -> None:
        """Add a step: ``out = after(conv(source) + plus)``, ``activated = following(out)``."""
        target = out if out is not None else activated
        assert target is not None
        images, height, width, padded = target.pixels.shape
        group = next(g for g in (64, 32, 16) if padded % g == 0 and g <= native.program_group())
        if conv not in self.weights:
            self.weights[conv] = _ordered(conv.weight, padded, group, source.pixels.dtype)
        self.kept += [
            self.weights[conv],
            *(one.pixels for one in (source, out, activated, plus and plus[0]) if one is not None),
        ]
        scale, shift, after_relu = _affine(after)
        next_scale, next_shift, next_relu = _affine(following)
        shortcut, plus_stride = plus if plus is not None else (None, 1)
        self.steps.append(
            _Step(
                input=source.start + _shift(conv, source),
                plus=shortcut and shortcut.start,
                out=out and out.start,
                activated=activated and activated.start,
                weight=self.weights[conv].data_ptr(),
                bias=self.vector(conv.bias, padded),
                scale=self.vector(scale, padded),
                shift=self.vector(shift, padded),
                next_scale=self.vector(next_scale, padded),
                next_shift=self.vector(next_shift, padded),
                images=images,
                height=height - 2,
                width=width - 2,
                channels=padded,
                in_channels=source.channels,
                kernel=conv.weight.shape[2],
                stride=conv.settings[0][0],
                in_pixel=source.padded,
                in_row=source.row,
                in_image=source.image,
                plus_stride=plus_stride,
                plus_channels=shortcut.padded if shortcut else 0,
                plus_row=shortcut.row if shortcut else 0,
                plus_image=shortcut.image if shortcut else 0,
                group=group,
                relu=conv.relu,
                after_relu=after_relu,
                next_relu=next_relu,
                half=source.half,
                half_plus=shortcut is not None and shortcut.half,
                half_out=out is not None and out.half,
                half_activated=activated is not None and activated.half,
            )
        )


def answering(network: nn.Module, dtype: torch.dtype = torch.float32) -> Callable[[Tensor], Tensor] | None:
    """A function that answers as a folded network does, made for a few images; None where there is none.

    Args:
        network: what `folding.folded` returns in float32, on the CPU. Later changes of it do not reach the function.
        dtype: of what convolutions read: float32, or bfloat16 where the processor multiplies it.

    Returns:
        (n, in_channels, h, w) float32 in channels_last -> (n, num_classes).
    """
    parts = list(network.children())
    stem = nn.Sequential(*(part for part in parts[:2]))
    units, (norm, classifier) = parts[2:-2], parts[-2:]
    if not (native.program_takes(dtype) and isinstance(classifier, Classifier)):
        return None
    known = [unit for unit in units if isinstance(unit, FoldedUnit) and _is_known(unit)]
    if len(known) < len(units) or not known:
        return None
    pres = [unit.pre for unit in known] + [norm]
    weights: dict[FoldedConv, Tensor] = {}  # in the program's order, for all shapes
    lock = threading.Lock()  # the maps of a program belong to one call at a time

    @lru_cache(maxsize=SHAPES)
    def program(shape: torch.Size) -> Program:
        return _build(known, pres, shape, dtype, weights)

    def answer(x: Tensor) -> Tensor:
        x = stem(x)
        with lock:
            found = program(x.shape)
            if found.raw is not None:
                found.raw.inside.copy_(x)
            if found.activated is not None:
                found.activated.inside.copy_(pres[0](x))
            native.run_program(found.steps)
            return classifier(found.result.inside)

    return answer


@dataclass
class Program:
    """Steps for one input shape.

    Args:
        raw: where the input goes; None if no step reads it as it is.
        activated: where its pre-activation goes; None if there is none.
        steps: for `native.run_program`.
        result: what the classifier reads.
        kept: tensors whose addresses the steps hold.
    """

    raw: Map | None
    activated: Map | None
    steps: ctypes.Array[_Step]
    result: Map
    kept: list[Tensor]


def _build(
    units: list[FoldedUnit],
    pres: list[nn.Module],
    shape: Sequence[int],
    dtype: torch.dtype,
    weights: dict[FoldedConv, Tensor],
) -> Program:
    built = _Builder(weights)
    wide = torch.float32  # of sums and of what is added to them

    def activates(number: int) -> bool:
        """Whether the convolutions of a unit read something else than what enters it."""
        return dtype != wide or not isinstance(pres[number], nn.Identity)

    raw = None if units[0].shared and activates(0) else built.map(shape, wide)
    activated = built.map(shape, dtype) if activates(0) else None
    entry = raw, activated
    for number, unit in enumerate(units):
        h = activated if activated is not None else raw
        shortcut = h if unit.shared else raw
        assert h is not None
        assert shortcut is not None
        *first, last = unit.residual
        source = h
        for conv in first:
            assert isinstance(conv, FoldedConv)
            result = built.map(_shape(conv, source), dtype)
            built.convolve(conv, source, result)
            if source is not h:
                built.done(source)
            source = result
        change = unit.join.shortcut
        plus, projected = (shortcut, change.stride if isinstance(change, ZeroPad) else 1), None
        if isinstance(change, Projection):
            assert isinstance(change.conv, FoldedConv)
            projected = built.map(_shape(change.conv, h), wide)
            # Where it reads what its unit's convolutions read, there may be a bfloat16 map of that.
            same = unit.shared or isinstance(pres[number], nn.Identity)
            built.convolve(change.conv, h if same else shortcut, projected)
            plus = projected, 1
        assert isinstance(last, FoldedConv)
        ends = number + 1 == len(units)
        carried = not ends and not units[number + 1].shared  # the next shortcut reads it as it is
        activating = activates(number + 1) and not (ends and isinstance(pres[-1], nn.Identity))
        size = _shape(last, source)
        next_raw = built.map(size, wide) if carried or not activating else None
        next_activated = built.map(size, wide if ends else dtype) if activating else None
        built.convolve(
            last, source, next_raw, next_activated, plus=plus, after=unit.after_add, following=pres[number + 1]
        )
        built.done(raw, activated, projected, None if source is h else source)
        raw, activated = next_raw, next_activated
    result = activated if activated is not None else raw
    assert result is not None
    return Program(*entry, (_Step * len(built.steps))(*built.steps), result, built.kept)


def _is_known(unit: FoldedUnit) -> bool:
    if not isinstance(unit.join, IdentityJoin):
        return False
    change = unit.join.shortcut
    convs = [*unit.residual, *([change.conv] if isinstance(change, Projection) else [])]
    return (
        isinstance(change, nn.Identity | ZeroPad | Projection)
        and all(isinstance(module, nn.Identity | nn.ReLU | Affine) for module in (unit.pre, unit.after_add))
        and all(isinstance(conv, FoldedConv) and _is_plain(conv) for conv in convs)
    )


def _is_plain(conv: FoldedConv) -> bool:
    (stride, across), padding, dilation, groups = conv.settings
    kernel = conv.weight.shape[2]
    return (
        kernel in (1, 3)
        and stride == across
        and (conv.same or padding == [kernel // 2] * 2)
        and dilation == [1, 1]
        and groups == 1
        and conv.weight.dtype == torch.float32
        and conv.weight.nbytes <= CACHED
    )


def _shift(conv: FoldedConv, source: Map) -> int:
    """Bytes from the first pixel of a map to where a convolution's first window has its middle."""
    _, height, width, _ = source.pixels.shape
    kernel, stride = conv.weight.shape[2], conv.settings[0][0]
    if not conv.same:
        return 0
    left, _, top, _ = same_border((height - 2, width - 2), kernel, stride)
    return ((kernel // 2 - top) * source.row + (kernel // 2 - left) * source.padded) * source.pixels.element_size()


def _shape(conv: FoldedConv, source: Map) -> tuple[int, int, int, int]:
    images, height, width, _ = source.pixels.shape
    stride = conv.settings[0][0]
    return images, len(conv.weight), -(-(height - 2) // stride), -(-(width - 2) // stride)


def _ordered(weight: Tensor, padded: int, group: int, dtype: torch.dtype) -> Tensor:
    """(c_out, c_in, k, k) in the order in which ``program.cpp`` reads it.

    (groups, k * k, c_in, values of a group), and of bfloat16 (groups, k * k, c_in / 2, values of a group, 2).
    """
    out, channels, kernel, _ = weight.shape
    together = 4 // dtype.itemsize
    turns = -(-channels // together)
    held = torch.zeros(padded, turns * together, kernel, kernel)
    held[:out, :channels] = weight.detach()
    held = held.view(padded // group, group, turns, together, kernel * kernel)
    return held.permute(0, 4, 2, 1, 3).to(dtype).contiguous()


def _affine(module: nn.Module | None) -> tuple[Tensor | None, Tensor | None, bool]:
    """Scale, shift and whether a ReLU follows."""
    if isinstance(module, Affine):
        return module.get_buffer("scale"), module.get_buffer("shift"), module.relu
    return None, None, isinstance(module, nn.ReLU)
