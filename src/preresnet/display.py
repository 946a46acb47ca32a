"""What a person sees in the terminal: what was found, as tables and lines."""

import json
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from preresnet import terminal
from preresnet.paper.networks import network, network_names
from preresnet.paper.recipes import recipe, recipe_names
from preresnet.paper.tables import printed
from preresnet.recipe import PHOTOGRAPHS

if TYPE_CHECKING:
    from preresnet.data.checking import Findings
    from preresnet.study.manifest import Manifest, Printed, RowEntry, Statistics

SUSPECTS_SHOWN, SHOWN_IMAGES = 20, 5
EXAMPLES = 3  # of each kind of problem that are shown
KINDS_OF_PROBLEMS = {
    "broken": "broken",
    "copy": "copy",
    "turned": "turned",
    "unusual": "unusual",
    "not_image": "no image",
}


def result(found: dict[str, Any]) -> None:
    """What a run came to: the content of its ``result.json``."""
    headline = f"{found['split']} error {found['error_pct']:.2f} %"
    rest = (
        f" at the last step: {found['steps']:,} steps, {found['num_images']:,} {found['split']} images, "
        f"trained at {found['images_per_s']:,.0f} images/s"
    )
    terminal.lines().print(Text.assemble((headline, "bold"), rest))


def models(as_json: bool) -> None:
    """Every network that has a name."""
    specs = {name: network(name) for name in network_names()}
    if as_json:
        print(json.dumps([{"name": name, "depth": spec.depth} for name, spec in specs.items()]))
        return
    table = Table("network", "depth", "units", "residual unit", "shortcut")
    for name, spec in specs.items():
        units = "+".join(str(stage.num_units) for stage in spec.stages)
        table.add_row(name, str(spec.depth), units, spec.unit.kind, _shortcut_words(spec.unit.shortcut))
    terminal.show(table)


def _shortcut_words(shortcut: Any) -> str:
    fields = ", ".join(f"{key} {value:g}" for key, value in vars(shortcut).items() if isinstance(value, float))
    return shortcut.kind.replace("_", " ") + (f" ({fields})" if fields else "")


def recipes(as_json: bool) -> None:
    """Every recipe that has a name, with what the paper printed for it."""
    recipes = {name: recipe(name) for name in recipe_names()}
    if as_json:
        entries = []
        for name, one in recipes.items():
            row = printed(name)
            entries.append(
                {
                    "name": name,
                    "network": one.network,
                    "data": one.data.name,
                    "steps": one.schedule.steps,
                    "global_batch": one.global_batch,
                    "paper_table": row.table if row else None,
                    "paper_error_pct": row.error_pct if row else None,
                }
            )
        print(json.dumps(entries))
        return
    table = Table("recipe", "steps", "batch", "learning rate", "printed", title="Recipes")
    for name, one in recipes.items():
        row = printed(name)
        error = "" if row is None else "fail" if row.error_pct is None else f"{row.error_pct:.2f} %"
        schedule = one.schedule
        table.add_row(
            name,
            f"{schedule.steps:,}" if one.data.name != PHOTOGRAPHS else "by epochs",
            str(one.global_batch),
            f"{schedule.lr:g}, {schedule.shape}",
            f"Table {row.table}: {error}" if row else "",
        )
    terminal.show(table)
    print("Any network of `preresnet list models` trains as cifar10/, cifar100/, imagenet/ or images/NETWORK.")


def description(found: dict[str, Any]) -> None:
    """What `preresnet.model.describe.describe` found, with a ``name``."""
    table = Table("part", title=f"{found['name']}: {found['depth']} layers, input {_shape(found['input'])}")
    for heading in ("units", "output", "parameters", "multiply-adds", "saved, float32", "saved, bfloat16"):
        table.add_column(heading, justify="right")
    whole = {**found, "part": "network", "units": None, "output": []}
    for part in [*found["parts"], whole]:
        if part is whole:
            table.add_section()
        table.add_row(
            part["part"],
            "" if part["units"] is None else str(part["units"]),
            _shape(part["output"]),
            f"{part['parameters']:,}",
            f"{part['multiply_adds']:,}",
            _mib(part["activation_bytes"]["float32"]),
            _mib(part["activation_bytes"]["bfloat16"]),
        )
    terminal.show(table)
    print(
        "Multiply-adds and saved activations are those of one image; activations as a plain training step keeps them."
    )
    training, fused = found["training"], found["fused"]
    memory = Table(
        "memory plan",
        title=f"Predicted memory of a training step: batch {training['batch']}, {training['precision']}, "
        "with weights and optimiser",
    )
    memory.add_column("MiB", justify="right")
    for plan, peak in training["peak_bytes"].items():
        memory.add_row(plan, _mib(peak))
    terminal.show(memory)
    print(
        f"Fused: {fused['norms']} norms, each with its ReLU; plain: {fused['lone_relus']} ReLUs without a norm. "
        f"{fused['recomputing']} of {fused['convolutions']} convolutions can recompute their input."
    )


def evaluation(report: dict[str, Any]) -> None:
    """What `preresnet.inference.full_report` found, with its ``split``."""
    out = terminal.console()
    top5 = f"top-5 error {report['top5_error_pct']:.2f} %; " if len(report["classes"]) > 10 else ""
    rest = (
        f": {report['num_wrong']:,} of {report['num_images']:,} images wrong; {top5}loss {report['loss']:.4f}; "
        f"calibration error {report['calibration']['ece_pct']:.2f} %"
    )
    out.print(Text.assemble((f"{report['split']} error {report['error_pct']:.2f} %", "bold"), rest))
    table = Table("class", title="By class")
    for heading in ("images", "wrong", "error %", "95 % interval", "precision %"):
        table.add_column(heading, justify="right")
    for entry in report["classes"]:
        error, precision = (
            "-" if entry[key] is None else f"{entry[key]:.2f}" for key in ("error_pct", "precision_pct")
        )
        between = "-" if entry["interval_pct"] is None else "{:.1f} to {:.1f}".format(*entry["interval_pct"])
        table.add_row(entry["name"], str(entry["num_images"]), str(entry["num_wrong"]), error, between, precision)
    terminal.show(table)
    if len(report["classes"]) <= 20:
        names = [entry["name"] for entry in report["classes"]]
        matrix = Table("true \\ answer", title="Confusion matrix (images)")
        for name in names:
            matrix.add_column(name[:5], justify="right")
        for name, row in zip(names, report["confusion"], strict=True):
            matrix.add_row(name, *(str(count) if count else "." for count in row))
        terminal.show(matrix)
    bins = Table("confidence", title="Calibration of the likeliest answer")
    for heading in ("images", "mean confidence %", "right %"):
        bins.add_column(heading, justify="right")
    for entry in report["calibration"]["bins"]:
        bins.add_row(
            f"{entry['from']:.2f} to {entry['to']:.2f}",
            str(entry["num_images"]),
            f"{entry['confidence_pct']:.1f}",
            f"{entry['accuracy_pct']:.1f}",
        )
    terminal.show(bins)
    if "temperature" in report["calibration"]:
        found = report["calibration"]
        out.print(
            f"temperature {found['temperature']:.2f}: logits divided by it would have a calibration error of "
            f"{found['scaled_ece_pct']:.2f} %"
        )
    for key, what in (("surest_wrong", "Surest wrong answers"), ("doubted", "Labels that are probably wrong")):
        if report.get(key):
            _images(report[key], what)
    for one in report.get("copies_across", [])[:EXAMPLES]:
        out.print(f"copy     {one['image']} is a copy of {one['of']}, which was trained on")


def _images(found: list[dict[str, Any]], title: str) -> None:
    table = Table("image", "label", "answer", title=title)
    table.add_column("probability", justify="right")
    for one in found[:SHOWN_IMAGES]:
        table.add_row(one["image"], one["label"], one["answer"], f"{one['probability']:.3f}")
    terminal.show(table)


def bench(found: dict[str, Any]) -> None:
    """What `preresnet.bench.measure.bench` measured."""
    title = f"{found['network']}, {found['task']}, batch {found['batch']}, {found['device']}"
    table = Table("system", "mode", "settings", title=title)
    for heading in ("images/s", "peak MiB", "first step s"):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        numbers = f"{row['images_per_s']:,.1f}", _mib(row["peak_bytes"]), f"{row['first_step_s']:.2f}"
        table.add_row(row["system"], row["mode"], row["settings"], *numbers)
    terminal.show(table)
    compared = Table("ours / other")
    for heading in ("speed", "memory"):
        compared.add_column(heading, justify="right")
    for name, ratio in found["ratios"].items():
        compared.add_row(name, f"{ratio['images_per_s']:.2f}", f"{ratio.get('peak_bytes', float('nan')):.2f}")
    terminal.show(compared)


def answers(found: list[dict[str, Any]]) -> None:
    """What `preresnet.trained.predict` answered."""
    table = Table("image", "class", show_lines=False)
    table.add_column("probability %", justify="right")
    for answer in found:
        for rank, entry in enumerate(answer["top"]):
            table.add_row(answer["image"] if rank == 0 else "", entry["class"], f"{100 * entry['probability']:.2f}")
        table.add_section()
    if found:
        terminal.show(table)


def findings(found: "Findings") -> None:
    """What `preresnet.data.checking.check` found in a folder of images."""
    out = terminal.lines()
    classes = sorted(found.classes.values())
    between = f", {classes[0]:,} to {classes[-1]:,} each" if classes else ""
    before = f" ({found.num_read:,} read now)" if found.num_read else " (none has changed)"
    out.print(f"{found.num_files:,} files{before}, {found.num_images:,} images of {len(classes):,} classes{between}")
    kinds = {kind: [one for one in found.problems if one.kind == kind] for kind in dict.fromkeys(KINDS_OF_PROBLEMS)}
    if found.problems:
        table = Table("what", "files", "for example", "why")
        for kind, ones in kinds.items():
            for number, one in enumerate(ones[:EXAMPLES]):
                table.add_row(
                    "" if number else KINDS_OF_PROBLEMS[kind], "" if number else f"{len(ones):,}", one.file, one.why
                )
            if len(ones) > EXAMPLES:
                table.add_row("", "", f"and {len(ones) - EXAMPLES:,} more", "all are named by --json")
            table.add_section()
        terminal.show(table)
    for name in found.rare:
        out.print(f"rare     {name}: {found.classes[name]:,} images")
    for name in found.missing:
        out.print(f"missing  {name}: no image")
    for one, other in found.alike:
        out.print(f"alike    {one} and {other}: is this one class?")
    if not found.needs_a_person:
        out.print("nothing to look at")


def suspects(found: dict[str, Any]) -> None:
    """What `preresnet.study.suspects.find` found: the images whose labels another class suits better."""
    doubted = [one for one in found["suspects"] if one["probably_wrong"]]
    table = Table("image", "label", "looks like", "score")
    for one in doubted[:SUSPECTS_SHOWN]:
        table.add_row(one["file"], one["label"], one["answer"], f"{one['score']:.3f}")
    if doubted:
        terminal.show(table)
    terminal.lines().print(
        f"{found['num_images']:,} images, each judged by one of {found['folds']} networks that had not seen it; "
        f"{found['error_pct']:.1f} % of the answers differ from the label; {len(doubted):,} labels are probably wrong"
    )


def predicted(found: dict[str, Any]) -> None:
    """What `preresnet.study.cost.predict` found."""
    table = Table("row", "network", title=found["title"])
    for heading in ("runs", "steps", "batch", "images", "multiply-adds", "hours"):
        table.add_column(heading, justify="right")
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in found["runs"]:
        rows.setdefault(run["row"], []).append(run)
    for runs in rows.values():
        one, images, hours = runs[0], sum(run["images"] for run in runs), sum(run["hours"] for run in runs)
        counts = [f"{number:,}" for number in (len(runs), one["steps"], one["batch"], images, one["multiply_adds"])]
        table.add_row(one["label"], one["network"], *counts, f"{hours:,.2f}")
    table.add_section()
    table.add_row("all", "", str(len(found["runs"])), "", "", f"{found['images']:,}", "", f"{found['hours']:,.2f}")
    terminal.show(table)
    print(f"Hours on {found['device']}: {found['measured']}.")


def planned(found: dict[str, Any]) -> None:
    """What `preresnet.study.scaling.predict` found: of one recipe each number of devices, of several a line each."""
    several = "rows" in found
    count = found["devices"]
    title = f"The paper's rows on {count} devices" if several else f"{found['recipe']} on up to {count} devices"
    table = Table("recipe" if several else "devices", title=title)
    for heading in ("images of each", "step", "images/s", "efficiency", "memory of each", "plan", "hours"):
        table.add_column(heading, justify="right")
    for row in found["rows"] if several else found["table"]:
        table.add_row(
            row["recipe"] if several else str(row["devices"]),
            f"{row['images_of_each']:,}",
            f"{1e3 * row['step_s']:,.1f} ms",
            f"{row['images_per_s']:,.0f}",
            f"{100 * row['efficiency']:.0f} %",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
            row["memory_plan"],
            f"{row['hours']:,.2f}",
        )
    terminal.show(table)
    print("This assumes:")
    for line in found["assumes"]:
        print(f"- {line}")


def study(found: "Manifest") -> None:
    """What `preresnet.study.reproduce` did: rows beside the paper's, then the claims.

    Errors of shortened runs stand in a column of their own name, and the paper's then in one that says what it belongs
    to, after everything else.
    """
    short = found.scale is not None
    has_paper = any(row.paper for row in found.rows)
    table = Table("row", title=found.title)
    if has_paper and not short:
        table.add_column("paper %", justify="right")
    table.add_column("shortened, median %" if short else "ours, median %", justify="right")
    for heading in ("n", "mean ± std", "95 % of the median"):
        table.add_column(heading, justify="right")
    for heading, is_shown in (("failed", found.counts_failed), ("diverged", found.counts_diverged)):
        if is_shown:
            table.add_column(heading, justify="right")
    if has_paper and short:
        table.add_column("(paper, at full length)", justify="right", style="dim")
    for row in found.rows:
        paper = [_paper_words(row.paper)] if has_paper else []
        cells = _statistics_words(row.statistics, _top5(row))
        if found.counts_failed:
            cells.append("" if row.statistics is None or row.statistics.failed is None else str(row.statistics.failed))
        if found.counts_diverged:
            cells.append("" if row.statistics is None else str(row.statistics.diverged))
        table.add_row(row.label, *([*cells, *paper] if short else [*paper, *cells]))
    terminal.show(table)
    for row in found.rows:
        for run in row.runs:
            if run.message:
                print(f"{run.status}: {row.row} seed {run.seed}: {run.message}")
    if found.claims:
        claims = Table("claim of the paper", "source", "answer", "evidence", title="What the paper says of these rows")
        for claim in found.claims:
            claims.add_row(claim.text, claim.source, claim.answer, claim.evidence)
        terminal.show(claims)
    elif found.differences:
        apart = Table("row", "against", title="Differences")
        for heading in ("of medians", "95 %", "p, two-sided", "n"):
            apart.add_column(heading, justify="right")
        for one in found.differences:
            interval = "" if one.interval is None else "{:+.2f} to {:+.2f}".format(*one.interval)
            p = "" if one.p is None else f"{one.p:.3f}"
            difference = "" if one.difference is None else f"{one.difference:+.2f}"
            rows = found.labels[one.a], found.labels[one.b]
            apart.add_row(*rows, difference, interval, p, "{}, {}".format(*one.n))
        terminal.show(apart)


def _paper_words(paper: "Printed | None") -> str:
    if paper is None:
        return ""
    if paper.error_pct is None:
        return "fail"
    if paper.top5_error_pct is not None:
        return f"{paper.error_pct:.2f} (top-5 {paper.top5_error_pct:.2f})"
    return f"{paper.error_pct:.2f}" + (f" ({paper.spread})" if paper.spread else "")


def _top5(row: "RowEntry") -> str:
    """Median top-5 error, where the paper prints one."""
    found = [run.top5_error_pct for run in row.runs if run.top5_error_pct is not None]
    is_printed = row.paper and row.paper.top5_error_pct is not None
    return f" (top-5 {median(found):.2f})" if found and is_printed else ""


def _statistics_words(found: "Statistics | None", top5: str) -> list[str]:
    if found is None:
        return ["", "0", "", ""]
    return [
        "diverged" if found.median is None else f"{found.median:.2f}{top5}",
        str(found.n),
        "" if found.std is None else f"{found.mean:.2f} ± {found.std:.2f}",
        "" if found.interval is None else "{:.2f} to {:.2f}".format(*found.interval),
    ]


def probes(found: dict[str, Any]) -> None:
    """Signal and gradient along depth, of one network or several."""
    for name, one in found["probes"].items():
        forward, joins, back = one["forward"], one["joins"], one["backward"]
        columns = [
            ("x rms", forward["x_rms"]),
            ("F rms", forward["residual_rms"]),
            ("y < 0 %", [value and 100 * value for value in forward["sum_negative_share"]]),
            ("shortcut", joins["factor"]),
            ("product", joins["product"]),
            ("gradient", back["gradient"]),
            ("straight", back["straight"]),
            ("rest", back["rest"]),
            ("cosine", back["cosine"]),
        ]
        table = Table(
            "unit",
            "module",
            *(title for title, _ in columns),
            title=f"{name}: {one['images']} images, loss {one['loss']:.3f}",
        )
        units = one["units"]
        shown = sorted({round(k * (len(units) - 1) / (SHOWN_UNITS - 1)) for k in range(SHOWN_UNITS)})
        for unit in shown if len(units) > SHOWN_UNITS else range(len(units)):
            table.add_row(str(unit + 1), units[unit], *(_number(values[unit]) for _, values in columns))
        terminal.show(table)
        agreement = max(one["agreement"].values())
        dead = sum(entry["dead"] for entry in one["dead"].values())
        channels = sum(entry["channels"] for entry in one["dead"].values())
        words = terminal.lines()
        words.print(
            f"the two ways to split the gradient agree to {agreement:.0e}; {dead} of {channels} ReLU channels dead"
        )
        for doubt in one["doubts"]:
            text = (
                f"in doubt, {doubt['unit']}: shortcut {doubt['shortcut']}, residual {doubt['residual']}; {doubt['why']}"
            )
            words.print(text)
        if "verdict" in one:
            words.print(Text.assemble((one["verdict"]["grade"], "bold"), f": {one['verdict']['because']}"))


SHOWN_UNITS = 12  # of a deep network; --json and --out have all


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _shape(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
