"""What makes the records in records/probe and the probe's pictures in docs/img.

    python benchmarks/probes.py records DIR [NETWORK ...]    measure networks (by default all that the guide shows)
    python benchmarks/probes.py pictures                     draw docs/img/probe-*.png from the records
    python benchmarks/probes.py training RUN RUN             draw docs/img/probe-training.png from runs of the guide
    python benchmarks/probes.py others                       draw docs/img/probe-others.png: torchvision and timm
    python benchmarks/probes.py score                        compare verdicts with the paper, in records and guide

DIR holds the official CIFAR-10 folder. One network of 110 layers takes about 40 s on one core.
"""

import json
import sys
from pathlib import Path
from typing import Any

import preresnet
from preresnet.paper.tables import TABLE_1, TABLE_2
from preresnet.pictures import canvas, depth, heatmaps
from preresnet.propagation import probing, series, verdict
from preresnet.train import watch

ROOT = Path(__file__).parents[1]
RECORDS, IMAGES = ROOT / "records" / "probe", ROOT / "docs" / "img"
PLAIN = [f"resnet{depth}-plain" for depth in (20, 32, 44, 56, 110)]
NETWORKS = list(dict.fromkeys([row.network for row in TABLE_1 + TABLE_2] + PLAIN))
GUIDE, BEGIN, END = ROOT / "docs" / "guide" / "probe" / "verdict.md", "<!-- score -->", "<!-- end of score -->"
KEPT = {
    "forward": ("x_rms", "residual_rms", "sum_mean", "sum_negative_share", "changed"),
    "joins": ("factor", "gain", "product"),
    "backward": ("gradient", "straight", "rest", "cosine", "cancelled_share"),
}


def measure(name: str, root: Path) -> None:
    """One record, unless it is there."""
    path = RECORDS / f"{name}.json"
    if path.exists():
        return
    settings = probing.Settings(
        data="cifar10",
        data_root=root,
        verdict=True,
        command=f"preresnet probe {name} --data cifar10 --verdict",
    )
    found = probing.measure([name], settings, report=lambda line: print(line, file=sys.stderr))
    one = found["probes"].pop(name)
    record: dict[str, Any] = {"network": name, **{key: value for key, value in found.items() if key != "probes"}}
    record |= {key: one[key] for key in ("images", "loss", "agreement", "verdict")}
    record["units"] = one["units"]
    for part, names in KEPT.items():
        record[part] = {key: one[part][key] for key in names}
    record["pairs"] = [
        {"first": run["units"][0], "units": len(run["units"]), "from_first": run["deviation"][0][1:]}
        for run in one["pairs"]
    ]
    record["dead"] = sum(entry["dead"] for entry in one["dead"].values())
    record["channels"] = sum(entry["channels"] for entry in one["dead"].values())
    RECORDS.mkdir(parents=True, exist_ok=True)
    path.write_text(text(series.short(record)))


def text(record: dict[str, Any]) -> str:
    """JSON with one line for each list."""
    lines = []
    for key, value in record.items():
        if key in KEPT:
            inner = ",\n".join(f'  "{name}": {json.dumps(column)}' for name, column in value.items())
            lines.append(f' "{key}": {{\n{inner}\n }}')
        else:
            lines.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read(name: str) -> dict[str, Any]:
    """A record."""
    return json.loads((RECORDS / f"{name}.json").read_text())


JOINS = {
    "identity": "resnet110-original",
    "scale 0.5": "resnet110-original-scale-0.5-1",
    "shortcut-only gate, b = 0": "resnet110-original-shortcut-gate-0",
    "shortcut-only gate, b = -6": "resnet110-original-shortcut-gate-6",
    "exclusive gate, b = -3": "resnet110-original-exclusive-gate-3",
    "exclusive gate, b = -6": "resnet110-original-exclusive-gate-6",
    "dropout 0.5": "resnet110-original-dropout-0.5",
}
ORDERS = {
    "original": "resnet110-original",
    "batch norm after addition": "resnet110-bn-after",
    "ReLU before addition": "resnet110-relu-before",
    "ReLU-only pre-activation": "resnet110-relu-only",
    "full pre-activation": "resnet110-preact",
}


def narrow(figure: Any) -> Any:
    """The same for README: small enough for its labels to be read on a phone, so the legend stands below."""
    figure.set_layout_engine("constrained")
    figure.set_size_inches(5.6, 3.6)
    for axis in figure.axes:
        axis.set_xlabel("residual unit")
    beside = figure.axes[-1].get_legend()
    keys, labels = figure.axes[-1].get_legend_handles_labels()
    beside.remove()
    figure.legend(keys, labels, loc="outside lower center", fontsize=9, frameon=False)
    return figure


def draw_guide() -> None:
    """The pictures of the guide that records hold."""
    pair = {name: read(name) for name in ("resnet110-original", "resnet110-preact")}
    for row in ("signal", "activation", "gradient"):
        canvas.save(depth.draw_depth(pair, rows=(row,)), IMAGES / f"probe-{row}.png")
    canvas.save(narrow(depth.draw_depth(pair, rows=("gradient",))), IMAGES / "gradient.png", dpi=200)
    canvas.save(depth.draw_pairs({name: one["pairs"] for name, one in pair.items()}), IMAGES / "probe-pairs.png")
    joins = {title: read(name) for title, name in JOINS.items()}
    canvas.save(depth.draw_lines(joins, ("factor",)), IMAGES / "probe-factor.png")
    canvas.save(depth.draw_lines(joins, ("product", "signal")), IMAGES / "probe-product.png")
    canvas.save(depth.draw_lines(joins, ("straight", "gradient")), IMAGES / "probe-decay.png")
    orders = {title: read(name) for title, name in ORDERS.items()}
    canvas.save(depth.draw_lines(orders, ("activation", "signal", "straight", "gradient")), IMAGES / "probe-orders.png")


def draw_training(runs: list[Path]) -> None:
    """Two probed runs side by side."""
    canvas.save(heatmaps.draw_heatmaps({run.name: watch.read(run) for run in runs}), IMAGES / "probe-training.png")


def draw_others() -> None:
    """The program of the guide."""
    import timm
    import torch
    import torchvision

    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 128, 128), torch.randint(1000, (8,))
    models = {
        "torchvision resnet50": torchvision.models.resnet50(),
        "timm resnetv2_50": timm.create_model("resnetv2_50"),
    }
    probes = {title: preresnet.probe(model, (images, labels)).as_dict() for title, model in models.items()}
    canvas.save(depth.draw_depth(probes, rows=("signal", "activation", "gradient")), IMAGES / "probe-others.png")


def score() -> None:
    """What the verdicts are worth."""
    grades = {path.stem: read(path.stem)["verdict"]["grade"] for path in sorted(RECORDS.glob("resnet*.json"))}
    found = verdict.score(grades)
    (RECORDS / "score.json").write_text(json.dumps(found, indent=1) + "\n")
    before, rest = GUIDE.read_text().split(BEGIN)
    GUIDE.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.split(END)[1]}")
    print(json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=1))


def table(found: dict[str, Any]) -> str:
    """The score as the guide shows it."""
    one, two = (f"{part['settings_hit']:g} of {part['settings']}" for part in (found["table1"], found["table2"]))
    count, hits = found["table1"]["networks"], found["table1"]["hits"]
    lines = [
        f"{one} settings of Table 1 and {two} of Table 2 are judged as the paper found them. (The gates from 0 to -5",
        f"are one setting, which counts with the share of its hits. Of {count} networks of Table 1 it is {hits}.)",
        "",
        "| network | paper | verdict | right? | product of factors | largest step, of the weight | wrong in 48 steps |",
        "|---|---|---|---|---|---|---|",
    ]
    printed = {row["network"]: row for row in found["rows"]}
    for name in [*printed, *(name for name in PLAIN if name not in printed)]:
        path = RECORDS / f"{name}.json"
        if not path.exists():
            continue
        said, row = json.loads(path.read_text())["verdict"], printed.get(name)
        paper = "" if row is None else row["paper"] if row["paper"] == "fail" else f"{row['paper']:.2f} %"
        hit = "" if row is None else "hit" if row["hit"] else "**miss**"
        measured = f"{said['product']:.2g} | {said['largest_update']:.2g} | {said['error_pct']:.1f} %"
        lines.append(f"| `{name}` | {paper} | {said['grade']} | {hit} | {measured} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["records"] and len(sys.argv) > 2:
        for network in sys.argv[3:] or NETWORKS:
            measure(network, Path(sys.argv[2]))
    elif sys.argv[1:] == ["pictures"]:
        draw_guide()
    elif sys.argv[1:2] == ["training"] and len(sys.argv) > 2:
        draw_training([Path(name) for name in sys.argv[2:]])
    elif sys.argv[1:] == ["others"]:
        draw_others()
    elif sys.argv[1:] == ["score"]:
        score()
    else:
        sys.exit(__doc__)
