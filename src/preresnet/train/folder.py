"""What does the folder of a run hold, and when may it be written?"""

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

import preresnet.device as devices
from preresnet.fields import read_json
from preresnet.paper.networks import network
from preresnet.recipe import Precision, Recipe
from preresnet.spec import MemoryPlan, NetSpec, UserError, from_json, to_json

RECIPE_FILE, NETWORK_FILE, RUN_FILE, RESULT_FILE = "recipe.json", "network.json", "run.json", "result.json"
EVALUATION_FILE = (
    "evaluation.json"  # what `inference.full_report` found at the last step, as `evaluate --json` prints it
)
CURVE_FILE = "curve.png"


@dataclass(frozen=True)
class Request:
    """One run: a recipe, a seed and a place.

    Args:
        recipe: what to do.
        out: folder of the run.
        seed: of the weights, the order of images, augmentation and dropout.
        data_root: folder of the official files, or of train/ and val/; None downloads.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        resume: continue the run in ``out`` if there is one.
        memory: a plan of `preresnet.model.memory`, or ``auto``: the one that computes least among those that fit.
        workers: processes that read image files; None chooses.
        name: of the recipe, for records.
        command: that started the run, for records.
    """

    recipe: Recipe
    out: Path
    seed: int = 0
    data_root: Path | None = None
    device: str = "auto"
    resume: bool = False
    memory: Literal["auto"] | MemoryPlan = "auto"
    workers: int | None = None
    name: str = ""
    command: str = ""


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


def check(request: Request, spec: NetSpec) -> None:
    """Refuse to touch a folder that holds something else than the run to be resumed."""
    out = request.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give another --out")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found <= {RUN_FILE, NETWORK_FILE}:  # new, or killed before `claim` was done
        return
    if RECIPE_FILE not in found:
        raise UserError(f"{out} is not empty and holds no run; give another --out")
    if not request.resume:
        raise UserError(f"{out} already holds a run; add --resume to continue it, or give another --out")
    stored = from_json(Recipe, (out / RECIPE_FILE).read_text())
    seed = json.loads((out / RUN_FILE).read_text())["seed"]
    was, now = asdict(stored) | {"seed": seed}, asdict(request.recipe) | {"seed": request.seed}
    changed = [f"{name}: {was[name]} there, {now[name]} now" for name in was if was[name] != now[name]]
    if not changed and from_json(NetSpec, (out / NETWORK_FILE).read_text()) != spec:
        changed = ["the network's specification"]
    if changed:
        raise UserError(f"{out} holds another run ({'; '.join(changed)}); give the same values, or another --out")


def claim(request: Request, spec: NetSpec, device: torch.device, precision: Precision) -> None:
    """Make the folder and write down what the run is; the folder of a run that is resumed stays as it is."""
    out = request.out
    if (out / RECIPE_FILE).is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    run = {"seed": request.seed, **provenance(request, device, precision)}
    (out / RUN_FILE).write_text(json.dumps(run, indent=1) + "\n")
    (out / NETWORK_FILE).write_text(to_json(spec) + "\n")
    # Written last: a folder with a recipe is a run with all it needs to be resumed.
    (out / RECIPE_FILE).write_text(to_json(request.recipe) + "\n")


def provenance(request: Request, device: torch.device, precision: Precision) -> dict[str, Any]:
    """What a reader needs to repeat the run: command, versions, hardware."""
    from preresnet import __version__

    return {
        "command": request.command,
        "name": request.name,
        "precision": precision,
        "device": devices.describe(device),
        "versions": {
            "preresnet": __version__,
            "commit": _commit(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": sys.platform,
        },
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
