"""The folder of a run: what was asked for, what is in it, and who may write there."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from filelock import FileLock, Timeout

import preresnet.device as devices
from preresnet.data import leaving_out, own_images
from preresnet.fields import read_json, require
from preresnet.paper.networks import network
from preresnet.recipe import Precision, Recipe
from preresnet.spec import MemoryPlan, NetSpec, UserError, from_json, to_json
from preresnet.train.capture import Mechanism, chosen
from preresnet.train.checkpoint import not_written, write_atomically

RECIPE_FILE, NETWORK_FILE, RUN_FILE, RESULT_FILE = "recipe.json", "network.json", "run.json", "result.json"
EVALUATION_FILE = (
    "evaluation.json"  # what `inference.full_report` found at the last step, as `evaluate --json` prints it
)
THUMBNAILS_FILE = "thumbnails.json"  # of the images that the evaluation names
CURVE_FILE, LEAVE_OUT_FILE, VALIDATION_FILE = "curve.png", "leave-out.txt", "validation.txt"
T = TypeVar("T")
LOCK_FILE, HOLDER_FILE = ".lock", ".holder.json"


@dataclass(frozen=True)
class Request:
    """One run: a recipe, a seed and a place.

    Args:
        recipe: what to do.
        out: folder of the run.
        seed: of the weights, the order of images, augmentation and dropout.
        data_root: folder of the official files, or of train/ and val/; None downloads.
        leave_out: a list of image files that are not read (`preresnet.data.leaving_out`); the run keeps a copy.
        weights: a run or weights file whose network this one starts from; None: from initial weights.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        resume: continue the run in ``out`` if there is one.
        memory: a plan of `preresnet.model.memory`, or ``auto``: the one that computes least among those that fit.
        workers: processes that read image files; None chooses.
        gpu: mechanisms of `preresnet.train.capture` on a CUDA device; None: as is best there.
        name: of the recipe, for records.
        command: that started the run, for records.
    """

    recipe: Recipe
    out: Path
    seed: int = 0
    data_root: Path | None = None
    leave_out: Path | None = None
    weights: Path | None = None
    device: str = "auto"
    resume: bool = False
    memory: Literal["auto"] | MemoryPlan = "auto"
    workers: int | None = None
    gpu: tuple[Mechanism, ...] | None = None
    name: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed {self.seed}; it must be 0 or more, and below 2**63")
        require(self.workers is None or self.workers >= 0, f"workers {self.workers}; it must be 0 or more")


def resolve_network(recipe: Recipe, num_classes: int, in_channels: int) -> NetSpec:
    """The specification that a recipe trains: by name, or from a JSON file, fitted to the data's classes and channels.

    Raises:
        ValueError: no such network, or a file that holds none.
    """
    if not recipe.network.endswith(".json"):
        return network(recipe.network, num_classes=num_classes, in_channels=in_channels)
    return replace(read_network(Path(recipe.network)), num_classes=num_classes, in_channels=in_channels)


def read_network(path: Path) -> NetSpec:
    """A specification from a JSON file: one alone, or what ``preresnet describe NAME --json`` printed.

    Raises:
        ValueError: the file cannot be read, or a field is wrong.
    """
    content = read_json(path, "the network file")
    try:
        return from_json(NetSpec, json.dumps(content.get("spec", content) if isinstance(content, dict) else content))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def stored_as(kind: type[T], path: Path) -> T:
    """What a file of a run holds, which may have been damaged since.

    Raises:
        UserError: it cannot be read, or holds something else; it is named.
    """
    content = read_json(path, "the run's file")
    try:
        return from_json(kind, json.dumps(content))
    except UserError as error:
        raise UserError(f"{path}: {error}; put a whole copy of it there, or give another --out") from None


def check(request: Request, spec: NetSpec) -> None:
    """Refuse to touch a folder that holds something else than the run to be resumed."""
    out = request.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another --out")
    found = {path.name for path in out.iterdir() if path.suffix != ".partial"} if out.is_dir() else set()
    if found <= {
        RUN_FILE,
        NETWORK_FILE,
        LOCK_FILE,
        HOLDER_FILE,
        LEAVE_OUT_FILE,
        VALIDATION_FILE,
    }:  # new, or killed before `claim` was done
        return
    if RECIPE_FILE not in found:
        raise UserError(f"{out} is not empty and holds no run; give another --out")
    if not request.resume:
        raise UserError(f"{out} already holds a run; add --resume to continue it, or give another --out")
    stored, run = stored_as(Recipe, out / RECIPE_FILE), read_json(out / RUN_FILE, "the run's file")
    if not isinstance(run, dict) or "seed" not in run:
        raise UserError(f"{out / RUN_FILE} holds no seed; put a whole copy of it there, or give another --out")
    was, now = asdict(stored) | {"seed": run["seed"]}, asdict(request.recipe) | {"seed": request.seed}
    changed = [f"{name}: {was[name]} there, {now[name]} now" for name in was if was[name] != now[name]]
    if not changed and stored_as(NetSpec, out / NETWORK_FILE) != spec:
        changed = ["the network's specification"]
    if not changed and _listed(out / LEAVE_OUT_FILE) != _listed(request.leave_out):
        changed = ["the files that --leave-out names"]
    if changed:
        raise UserError(f"{out} holds another run ({'; '.join(changed)}); give the same values, or another --out")


def _listed(file: Path | None) -> frozenset[str]:
    return leaving_out.read(file) if file is not None and file.is_file() else frozenset()


@contextmanager
def hold(out: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Keep every other process from training in a folder, which is made; reading it is free to all.

    The lock is the operating system's (flock): it ends with the process that holds it, however that dies. Whoever holds
    it may hold it again.

    Args:
        out: folder of the run.
        wait_s: how long to wait for another process.

    Raises:
        UserError: another process holds it, which is named; or nobody may write there.
        NotWrittenError: the disk is full, say.
    """
    lock = FileLock((out / LOCK_FILE).resolve(), is_singleton=True)
    holder = out / HOLDER_FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise UserError(f"{out} is in use: {_holder(holder)}. Wait for it, end it, or give another --out") from None
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}); give another --out") from None
    except OSError as error:
        raise not_written(out, error) from error
    try:
        if lock.lock_counter == 1:
            who = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            write_text(holder, json.dumps(who))
        yield
    finally:
        if lock.lock_counter == 1:
            holder.unlink(missing_ok=True)
        lock.release()


def _holder(file: Path) -> str:
    try:
        who = json.loads(file.read_text())
        return f"process {who['pid']} on {who['host']} trains there since {who['since']}"
    except (OSError, ValueError, KeyError):  # it has just begun, or ended
        return "another process trains there"


def claim(
    request: Request,
    spec: NetSpec,
    device: torch.device,
    precision: Precision,
    validation: Mapping[str, str],
    more: Mapping[str, Any],
) -> None:
    """Write down what the run is; the folder of a run that is resumed stays as it is.

    Args:
        request: what was asked for.
        spec: of the network.
        device: that trains.
        precision: that it computes in.
        validation: images that it has kept out of training by a rule, with their classes; none where there was no rule.
        more: that the file of the run says.
    """
    out = request.out
    if (out / RECIPE_FILE).is_file():
        return
    run = {"seed": request.seed, **more, **provenance(request, device, precision)}
    if request.leave_out is not None:
        shutil.copyfile(request.leave_out, out / LEAVE_OUT_FILE)
    if validation:
        write_text(out / VALIDATION_FILE, leaving_out.text(validation, own_images.HEAD))
    # The recipe is written last: a folder with one is a run with all it needs to be resumed.
    for file, text in (
        (RUN_FILE, json.dumps(run, indent=1)),
        (NETWORK_FILE, to_json(spec)),
        (RECIPE_FILE, to_json(request.recipe)),
    ):
        write_text(out / file, text + "\n")


def write_text(path: Path, text: str) -> None:
    """A file of text, whole or not at all."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def provenance(request: Request, device: torch.device, precision: Precision) -> dict[str, Any]:
    """What a reader needs to repeat the run: command, versions, hardware."""
    return {
        "command": request.command,
        "name": request.name,
        "precision": precision,
        "gpu": list(chosen(request.gpu, device)),
        "device": devices.describe(device),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    from preresnet import __version__

    return {
        "preresnet": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": sys.platform,
    }


def _commit() -> str:
    """The commit of this source tree, "+" where it was changed since; empty for an installed package."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603

    try:
        git("ls-files", "--error-unmatch", __file__)  # else the package lies in somebody else's repository
        return git("describe", "--always", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""
