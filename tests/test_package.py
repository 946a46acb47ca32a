"""The built package, installed into a clean environment outside the repository, does what the checkout does."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
CHECKER = shutil.which("basedpyright", path=str(Path(sys.executable).parent)) or shutil.which("basedpyright")

SHORT = [
    *["--network", "resnet8-preact", "--data.image-size", "8", "--global-batch", "8", "--schedule.steps", "6"],
    *["--schedule.warmup-steps", "2", "--eval-every", "6", "--save-every", "6", "--precision", "float32"],
]

CONSUMER = """\
from typing import assert_type

import torch

import preresnet

model = preresnet.create_model("resnet20-preact", num_classes=10, seed=0)
assert_type(model, preresnet.Network)
assert_type(model.taps(torch.zeros(1, 3, 32, 32)), dict[str, torch.Tensor])
assert_type(model.spec, preresnet.NetSpec)
assert_type(preresnet.recipe("digits/resnet20-preact"), preresnet.Recipe)
assert_type(preresnet.list_models(), list[str])
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command printed; its errors are part of a failure's message."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and source distribution."""
    if UV is None:
        pytest.skip("uv is not installed; `make test` installs it")
    place = tmp_path_factory.mktemp("dist")
    run(UV, "build", "--quiet", "--out-dir", place, ROOT, cwd=place)
    return place


@pytest.fixture(scope="module")
def clean(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel and what it asks for, and nothing of the repository."""
    assert UV is not None
    place = tmp_path_factory.mktemp("clean")
    venv.create(place / "env", symlinks=True)
    python = place / "env" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    run(UV, "pip", "install", "--quiet", "--python", python, wheel, cwd=place)
    return place


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_source_distribution_gives_the_same_wheel(built: Path, tmp_path: Path) -> None:
    assert UV is not None
    (source,) = built.glob("*.tar.gz")
    run(UV, "build", "--quiet", "--wheel", "--out-dir", tmp_path, source, cwd=tmp_path)
    (again,), (wheel,) = tmp_path.glob("*.whl"), built.glob("*.whl")
    contents = [{name: file.read(name) for name in file.namelist()} for file in map(zipfile.ZipFile, (again, wheel))]
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_installed_package_trains_and_reports(clean: Path) -> None:
    program, cache = clean / "env" / "bin" / "preresnet", clean / "cache"
    where = run(clean / "env" / "bin" / "python", "-c", "import preresnet; print(preresnet.__file__)", cwd=clean)
    assert str(clean) in where
    run(program, "train", "digits/resnet20-preact", "--out", "run", *SHORT, cwd=clean, PRERESNET_CACHE=str(cache))
    if any(map(shutil.which, ("c++", "g++", "clang++"))):
        assert list(cache.glob("kernels-*.so")), "no kernels were compiled from the installed sources"
    assert '"error_pct"' in run(program, "evaluate", "run", "--json", cwd=clean, PRERESNET_CACHE=str(cache))
    run(program, "report", "run", "--out", "page.html", cwd=clean, PRERESNET_CACHE=str(cache))
    assert "resnet8-preact" in (clean / "page.html").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_types_hold_in_a_project_that_imports_it(clean: Path) -> None:
    if CHECKER is None:
        pytest.skip("basedpyright is not installed; `make test` installs it")
    project = clean / "project"
    project.mkdir()
    (project / "right.py").write_text(CONSUMER)
    options = ["--level", "error", "--pythonpath", clean / "env" / "bin" / "python"]
    (project / "pyproject.toml").write_text(
        '[tool.basedpyright]\ntypeCheckingMode = "strict"\nreportUnknownMemberType = false\n'
    )
    run(CHECKER, *options, "right.py", cwd=project)
    (project / "wrong.py").write_text("import preresnet\n\npreresnet.create_model(20)\n")
    with pytest.raises(AssertionError, match="reportArgumentType"):
        run(CHECKER, *options, "wrong.py", cwd=project)
