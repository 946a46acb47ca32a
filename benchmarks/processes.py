"""What several processes cost on one CPU: one process with two threads beside two of one thread each.

Two processes train the same batches, once with norms that see a process's own images, once with norms that see all.
Rounds are interleaved, each a start of its own; a round's figure is the median of its steps. What `preresnet plan`
predicts with one thread stands beside them.

    python benchmarks/processes.py cifar10/resnet20-preact --out records/speed/processes-2.json
"""

import argparse
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import preresnet
from preresnet import device as devices
from preresnet import distributed
from preresnet.fields import with_fields
from preresnet.model.network import build
from preresnet.paper.recipes import recipe
from preresnet.study import cost
from preresnet.train import parallel
from preresnet.train.capture import TrainingStep
from preresnet.train.optim import build_optimizer, set_lr

WARM, LINK = 3, 1.0
SYSTEMS = {  # processes, and whether a norm sees all of their images
    "one process, two threads": (1, True),
    "two processes, norms apart": (2, False),
    "two processes, norms over both": (2, True),
}


def work(name: str, together: bool, steps: int) -> None:
    """What each process does: steps on random images; the first prints the seconds of each."""
    with distributed.joined("cpu") as world:
        given = recipe(name)
        given = with_fields(given, norm_batch=None if together else given.global_batch // world.size)
        task = cost.work(given, torch.device("cpu"), None)
        torch.manual_seed(0)
        model = devices.place(build(task.spec, 0), torch.device("cpu"))
        model.train()
        optimizer = build_optimizer(model, given.optim, precision=task.precision)
        set_lr(optimizer, 0.01)
        division = parallel.divide(given, world.size)
        called = parallel.wrapped(model)
        step = TrainingStep(model, optimizer, division.part, task.precision, (), 0, division.ranks, called)
        share = given.global_batch // world.size
        x = torch.randn(share, task.spec.in_channels, task.size, task.size)
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.arange(share) % task.spec.num_classes
        took = []
        for number in range(WARM + steps):
            begin = time.perf_counter()
            step(x, y, number)[0].item()
            took.append(time.perf_counter() - begin)
        if world.first:
            print(json.dumps(took[WARM:]))


def measured(name: str, size: int, together: bool, steps: int) -> float:
    """Seconds of a step, in processes that end with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": str(2 // size),
    }
    started = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, __file__, name, "--worker", str(int(together)), "--steps", str(steps)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate()[0] for process in started]
    return median(json.loads(said[0]))


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        work(asked.recipe, bool(asked.worker), asked.steps)
        return
    rounds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    for number in range(asked.rounds):
        order = list(SYSTEMS) if number % 2 == 0 else list(reversed(SYSTEMS))
        for system in order:
            rounds[system].append(measured(asked.recipe, *SYSTEMS[system], asked.steps))
    step = {system: median(found) for system, found in rounds.items()}
    one, apart, over = (rounds[system] for system in SYSTEMS)
    command = [
        "-m",
        "preresnet",
        "plan",
        asked.recipe,
        "--devices",
        "2",
        "--link",
        str(LINK),
        "--device",
        "cpu",
        "--json",
    ]
    planned = subprocess.run(  # noqa: S603
        [sys.executable, *command], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True
    )
    predicted: dict[str, Any] = json.loads(planned.stdout)
    record = {
        "command": shlex.join(["python", "benchmarks/processes.py", *sys.argv[1:]]),
        "recipe": asked.recipe,
        "rounds": asked.rounds,
        "step_s": step,
        "rounds_step_s": rounds,
        "two_against_one": median(a / b for a, b in zip(one, over, strict=True)),
        "norms_over_both_share": median(1 - a / b for a, b in zip(apart, over, strict=True)),
        "predicted": {name: predicted[name] for name in ("step_s", "computing_s", "waiting_s", "link_gb_s")},
        "global_batch": recipe(asked.recipe).global_batch,
        "device": devices.describe(torch.device("cpu")),
        "versions": {
            "preresnet": preresnet.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(record, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
