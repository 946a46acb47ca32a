"""The C++ library: right at every level of instructions, compiled once, kept where nobody else writes."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from preresnet.kernels import native
from preresnet.paper.recipes import recipe
from preresnet.spec import UserError
from preresnet.train.folder import Request
from preresnet.train.run import prepare

# Every operation on shapes with whole rows and with rests, against float64 by PyTorch's own operations.
NUMBERS = """
import sys, torch
from preresnet.kernels import native
assert native.available() and native.level() == sys.argv[1]
source = torch.Generator().manual_seed(0)
rounding = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}
for (n, c, h, w) in [(4, 16, 8, 8), (3, 7, 5, 3), (2, 300, 2, 2), (2, 1, 3, 3), (5, 24, 3, 7)]:
    for dtype, near in rounding.items():
        of = torch.float64 if dtype == torch.float64 else torch.float32
        a, b, f, g = (
            torch.randn(n, c, h, w, generator=source).to(dtype).contiguous(memory_format=torch.channels_last)
            for _ in range(4)
        )
        weight, bias = (torch.randn(c, generator=source).to(of) for _ in range(2))
        mean, inv_std, d_weight, d_bias, running_mean, running_var = (torch.zeros(c, dtype=of) for _ in range(6))
        y, again, d_x, total = (torch.empty_like(a) for _ in range(4))
        positions = n * h * w, c

        def check(found, expected, name):
            error = float((found.double() - expected.double()).norm() / expected.double().norm())
            assert error < near, (name, tuple(a.shape), dtype, error)

        wide = a.double().requires_grad_(), weight.double().requires_grad_(), bias.double().requires_grad_()
        moments = torch.zeros(c).double(), torch.ones(c).double()
        expected = torch.nn.functional.batch_norm(wide[0], *moments, *wide[1:], True, 0.1, 1e-5).relu()
        statistics = mean, inv_std, running_mean, running_var
        native.call("normalise", dtype, a, y, *positions, weight, bias, None, *statistics, 0.1, 1e-5, 1)
        check(y, expected, "normalise")
        check(running_mean, moments[0], "running mean")
        native.call("apply", dtype, a, again, *positions, weight, bias, mean, inv_std, 1)
        assert torch.equal(y, again), "apply"
        grads = torch.autograd.grad(expected, wide, g.double())
        vectors = weight, bias, mean, inv_std, d_weight, d_bias
        native.call("differentiate", dtype, a, g, b, d_x, *positions, *vectors, 1)
        for found, wanted in zip((d_x, d_weight, d_bias), (grads[0] + b.double(), *grads[1:])):
            check(found, wanted, "differentiate")
        of_sum = torch.empty(2, c, dtype=of)
        native.call("add", dtype, a, b, total, *positions, of_sum)
        check(total, a.double() + b.double(), "add")
        check(of_sum[1], total.double().var((0, 2, 3), correction=0), "variance of a sum")
        gate = torch.sigmoid(a.double() + bias.double().view(-1, 1, 1))
        native.call("gate", dtype, a, b, f, y, *positions, bias, 1)
        check(y, (1 - gate) * b.double() + gate * f.double(), "gate")
        d_b, d_f = torch.empty_like(a), torch.empty_like(a)
        native.call("differentiate_gate", dtype, a, b, f, g, d_x, d_b, d_f, *positions, bias, d_bias, 1)
        check(d_x, g.double() * (f.double() - b.double()) * gate * (1 - gate), "d logit")
        check(d_f, g.double() * gate, "d residual")
"""


@pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")
@pytest.mark.parametrize("level", native.LEVELS)
def test_every_level_computes_the_same(level: str) -> None:
    if level not in native.levels_here():
        pytest.skip(f"this processor does not execute {level}")
    script = [sys.executable, "-c", NUMBERS, level]
    done = subprocess.run(
        script, env=os.environ | {"PRERESNET_MARCH": level}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_level_that_is_none_or_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    level: Callable[[], str] = native.level.__wrapped__
    monkeypatch.setattr(native, "_features", lambda: set(native.LEVELS["x86-64-v2"]))
    for given, found in (("", "native"), ("native", "native"), ("x86-64-v2", "x86-64-v2")):
        monkeypatch.setenv("PRERESNET_MARCH", given)
        assert level() == found
    monkeypatch.setenv("PRERESNET_MARCH", "znver5")
    with pytest.raises(UserError, match="'znver5'; use native, x86-64-v2, x86-64-v3, x86-64-v4"):
        level()
    monkeypatch.setenv("PRERESNET_MARCH", "x86-64-v3")
    with pytest.raises(UserError, match=r"no abm, avx, avx2, .*; use native, x86-64-v2$"):
        level()


def test_a_refused_level_ends_training_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "level", native.level.__wrapped__)
    monkeypatch.setenv("PRERESNET_MARCH", "znver5")
    with pytest.raises(UserError, match="znver5"):
        prepare(Request(recipe("digits/resnet20-preact"), tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_tensors_that_a_kernel_cannot_read_are_refused() -> None:
    assert native._address(torch.ones(3))
    assert native._address(torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    with pytest.raises(AssertionError, match="with gaps"):
        native._address(torch.ones(1).expand(3))
    with pytest.raises(AssertionError, match="on meta"):
        native._address(torch.ones(3, device="meta"))


# --- building --------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program like ccache that notes its calls; a tiny source; a cache and temporary files of its own."""
    program, source = tmp_path / "my wrapper", tmp_path / "tiny.cpp"
    program.write_text(f'#!/bin/sh\nfor last; do :; done\necho "$1 $last" >> "{tmp_path}/calls"\nexec "$@"\n')
    program.chmod(0o755)
    source.write_text('extern "C" int three() { return 3; }\n')
    monkeypatch.setattr(native, "SOURCES", (source,))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PRERESNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", f"'{program}' c++ -DOPTION")
    return program


def compiled(tmp_path: Path) -> int:
    """How often the compiler compiled."""
    return sum(not line.endswith("--version") for line in (tmp_path / "calls").read_text().splitlines())


needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler")


@needs_compiler
def test_a_compiler_may_have_words_and_its_library_is_kept(compiler: Path, tmp_path: Path) -> None:
    first = native._build("native")
    assert first == native._build("native")
    assert compiled(tmp_path) == 1
    assert list((tmp_path / "cache").iterdir()) == [first]
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == stat.S_IMODE(first.stat().st_mode) == 0o700
    compiler.write_text(compiler.read_text().replace("exec", '[ "$last" = --version ] && echo another version; exec'))
    assert native._build("native") != first


@needs_compiler
def test_a_library_that_others_could_have_written_is_not_loaded(compiler: Path, tmp_path: Path) -> None:
    path = native._build("native")
    planted = tmp_path / "planted"
    planted.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(planted)
    assert native._build("native") == path
    assert not path.is_symlink()
    path.chmod(0o722)
    native._build("native")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert compiled(tmp_path) == 3
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
        native._build("native")
        assert path.stat().st_uid == 0


@needs_compiler
@pytest.mark.parametrize("why", ["cannot be made", "others write to it", "cannot be written to", "is another's"])
def test_a_folder_that_cannot_be_used_is_replaced_by_one_private_folder(
    why: str, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    if why == "cannot be made":
        cache.write_text("a file")
    else:
        cache.mkdir()
    if why == "others write to it":
        cache.chmod(0o777)
    if why == "cannot be written to":
        monkeypatch.setattr(os, "access", lambda *_: False)
    if why == "is another's":
        if os.getuid() != 0:
            pytest.skip("needs root")
        os.chown(cache, 12345, -1)
    found = {native._build("native") for _ in range(2)}
    assert [path.parent for path in found] == [tmp_path / f"preresnet-{os.getuid()}"]
    assert compiled(tmp_path) == 1
    assert stat.S_IMODE(found.pop().parent.stat().st_mode) == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["cache", "calls", compiler.name, f"preresnet-{os.getuid()}", "tiny.cpp"]
    )


def test_a_private_folder_that_somebody_else_laid_out_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PRERESNET_CACHE", "/proc/nowhere")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / f"preresnet-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="can be written to by others"):
        native.cache_folder()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(OSError, match="can be written to by others"):
        native.cache_folder()


WITHOUT = """
import sys, warnings
import torch
from preresnet import create_model, inference
from preresnet.kernels import native
model = create_model("resnet8-preact", seed=0).to(memory_format=torch.channels_last)
x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        value = model(x).square().sum()
        value.backward()
    answers = [inference.answering(model, precision)(x) for precision in ("float32", "bfloat16")]
print(value.item(), *(float(answer.square().sum()) for answer in answers))
print(*[str(w.message) for w in caught if "fused CPU kernels" in str(w.message)], sep="\\n")
"""


@pytest.mark.parametrize(("cxx", "why"), [("/nowhere/c++", "No such file"), ("g++ 'a", "No closing quotation")])
def test_it_is_said_why_there_is_no_library(cxx: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", cxx)
    assert why in str(native._loaded.__wrapped__())


@needs_compiler
def test_without_a_compiler_there_is_one_attempt_one_warning_and_the_same_result(tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    failing.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$1" = --version ] || {{ echo no luck >&2; exit 1; }}\n'
    )
    failing.chmod(0o755)
    outputs = []
    for extra in ({}, {"CXX": str(failing), "PRERESNET_CACHE": str(tmp_path / "cache")}):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT], env=os.environ | extra, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout.splitlines())
    (expected, nothing), (found, warning) = outputs
    assert not nothing
    assert "no luck" in warning
    assert "Install a C++ compiler" in warning
    of_training, in_float32, in_bfloat16 = map(float, found.split())
    assert [of_training, in_float32] == pytest.approx([float(word) for word in expected.split()[:2]], rel=1e-4)
    assert in_bfloat16 == pytest.approx(in_float32, rel=0.1)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2  # its version, and one attempt
    assert not list((tmp_path / "cache").iterdir())
