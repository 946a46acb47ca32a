"""Folders as `preresnet train` and a study leave them, made by hand: a report needs no training."""

import json
from pathlib import Path
from typing import Any

import torch

from preresnet import inference
from preresnet.paper.networks import network
from preresnet.paper.recipes import recipe
from preresnet.spec import to_json
from preresnet.study import manifest
from preresnet.study.manifest import Answer, Difference, Manifest, Printed, RowEntry, RunEntry, Statistics

DIGITS = tuple("0123456789")


def answers(error_pct: float, classes: tuple[str, ...] = DIGITS, images: int = 400) -> dict[str, Any]:
    """An evaluation with exactly this share of wrong answers."""
    labels = torch.arange(images) % len(classes)
    wrong = torch.arange(images) < round(images * error_pct / 100)
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(images, len(classes), generator=generator)
    output[torch.arange(images), torch.where(wrong, (labels + 1) % len(classes), labels)] += 10
    return {"split": "test", **inference.full_report(output, labels, classes)}


def probed_line(step: int, seed: int) -> dict[str, Any]:
    """Signal and gradient of nine units: what a probe along training leaves at a step."""
    units, size = range(9), 1.0 + step / 100 + seed
    return {
        "step": step,
        "seconds": 0.1,
        "x_rms": [size * 1.5**unit for unit in units],
        "residual_rms": [0.5] * 9,
        "gradient": [2.0 ** (9 - unit) / size for unit in range(10)],
        "straight": [0.25] * 10,
        "rest": [0.75] * 9 + [0.0],
    }


def make_run(
    folder: Path,
    seed: int = 0,
    name: str = "digits/resnet20-preact",
    error_pct: float | None = 5.0,
    evaluated: bool = True,
    classes: tuple[str, ...] = DIGITS,
    probed: bool = False,
) -> Path:
    """A run of 800 steps; with ``error_pct`` None one that was killed at step 400; ``probed`` at six of them."""
    one = recipe(name)
    folder.mkdir(parents=True)
    run = {
        "seed": seed,
        "command": f"preresnet train {name} --seed {seed} --out {folder.name}",
        "name": name,
        "precision": "float32",
        "device": "a CPU of the test, 2 threads",
        "versions": {"preresnet": "0.1.0", "commit": "", "torch": "2.11.0", "python": "3.11.0", "system": "linux"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "recipe.json").write_text(to_json(one))
    spec = to_json(network(one.network, num_classes=len(classes)))
    (folder / "network.json").write_text(spec)
    end, last = (800, error_pct) if error_pct is not None else (400, 50.0)
    lines: list[dict[str, Any]] = []
    for step in range(20, end + 1, 20):
        lines.append({"step": step, "loss": 2.0 * (seed + 1) / step, "lr": 0.1})
        if step % 100 == 0:
            lines.append({"step": step, "split": "test", "error_pct": last + (end - step) / 20})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if probed:
        probes = [probed_line(step, seed) for step in (0, 20, 40, 160, 400, 800) if step <= end]
        (folder / "probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in probes))
    if error_pct is None:
        return folder
    evaluation = answers(error_pct, classes)
    result = {
        "error_pct": evaluation["error_pct"],
        "split": "test",
        "num_images": evaluation["num_images"],
        "steps": 800,
        "loss": evaluation["loss"],
        **run,
        "parameters": 269_434,
        "train_seconds": 12.5,
        "images_per_s": 4096.0,
        "recipe": json.loads(to_json(one)),
        "network": json.loads(spec),
    }
    (folder / "result.json").write_text(json.dumps(result))
    if evaluated:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def make_study(folder: Path, scale: dict[str, int] | None = None) -> Path:
    """Part of Table 1: three seeds, one seed whose paper's number is "fail", a run that diverged, one unfinished."""
    names = "resnet110-original", "resnet110-original-conv1x1", "resnet110-original-dropout-0.5", "resnet110-plain"
    labels = "original, Fig. 2(a)", "1x1 convolution & <shortcut>", "dropout 0.5, Fig. 2(f)", "plain network"
    errors: list[list[float | None]] = [[7.0, 6.0, 9.0], [12.0], [25.0, None], [None]]
    printed = [Printed(6.61), Printed(12.22, spread="12.3 ± 0.1"), Printed(None, fail=True), Printed(None, fail=True)]
    statistics = [
        Statistics(3, (7.0, 6.0, 9.0), 7.0, 7.33, 1.53, (6.0, 9.0), failed=None if scale else 0),
        Statistics(1, (12.0,), 12.0, 12.0, failed=None if scale else 0),
        Statistics(2, (25.0,), None, None, diverged=1, failed=None if scale else 2),
        None,
    ]
    rows = []
    for name, label, found, paper, numbers in zip(names, labels, errors, printed, statistics, strict=True):
        runs = []
        for seed, error in enumerate(found):
            place = f"cifar10-{name}/seed{seed}"
            make_run(folder / place, seed, f"cifar10/{name}", error)
            status = "done" if error is not None else "diverged" if seed == 1 else "running"
            message = "the loss was nan at step 401; the run stopped" if status == "diverged" else ""
            runs.append(RunEntry(seed, place, status, error, message=message))
        rows.append(RowEntry(f"cifar10-{name}", label, f"cifar10/{name}", name, "cifar10", paper, tuple(runs), numbers))
    a, b = rows[1].row, rows[0].row
    study = Manifest(
        "table1",
        "Table 1: shortcut connections",
        "preresnet reproduce table1 --out runs/table1",
        tuple(rows),
        scale,
        (Difference(a, b, -0.5, (1, 3), (-1.0, 0.25)), Difference(rows[2].row, b, None, (2, 3), p=0.1)),
        (
            Answer(
                "A 1x1 convolution on the shortcut hurts",
                "Section 3, Table 1",
                "not enough runs",
                "Median 7.00 % of 3 against 12.00 % of 1.",
                b,
                a,
                "lower error",
            ),
        ),
    )
    manifest.write(folder, study)
    return folder
