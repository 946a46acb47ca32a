"""How did the paper train each network, and which recipes are our own?"""

import difflib

from preresnet.paper.networks import network
from preresnet.paper.tables import ROWS
from preresnet.recipe import DataSpec, Optim, Recipe, Schedule

# Trained by the 2015 paper with the same recipe; the small members of the family, for comparison.
SMALL = tuple(f"cifar10/resnet{depth}-{order}" for depth in (20, 32, 44, 56) for order in ("original", "preact"))


def _authors_code(name: str) -> Recipe:
    """Table 4's dagger, as ``resnet-1k-layers`` runs it: batch 64, 200 epochs of 782 updates, Nesterov, no warm-up."""
    return Recipe(
        network=name,
        data=DataSpec(name="cifar10", normalise="channel_mean_std"),
        optim=Optim(nesterov=True),
        schedule=Schedule(steps=156_400, milestones=(62_560, 94_622), warmup_steps=0),
        global_batch=64,
    )


# Not the paper's: apart by name, never compared with a printed number.
OWN: dict[str, Recipe] = {
    "cifar10/resnet20-preact-quick": Recipe(
        network="resnet20-preact",
        data=DataSpec(name="cifar10", pad=2, small_size=24, small_share=0.6),
        optim=Optim(nesterov=True, weight_decay=2e-4, orthogonal_scale=0.15),
        schedule=Schedule(steps=3_000, lr=0.2, shape="one_cycle", warmup_steps=600),
        eval_every=600,
        save_every=300,
    ),
    "digits/resnet20-preact": Recipe(
        network="resnet20-preact",
        data=DataSpec(name="digits", image_size=16, pad=1, flip=False),
        optim=Optim(nesterov=True, weight_decay=5e-4),
        schedule=Schedule(steps=800, lr=0.2, shape="one_cycle", warmup_steps=160),
        global_batch=64,
        log_every=20,
        eval_every=100,
        save_every=100,
    ),
}

VARIANTS = {"cifar10/resnet1001-preact-batch64": _authors_code("resnet1001-preact")}


def recipe_names() -> list[str]:
    """Every recipe by name: each row of Tables 1 to 4 once, the smaller networks, then our own."""
    return list(dict.fromkeys([row.recipe for row in ROWS] + list(SMALL) + list(OWN)))


def recipe(name: str) -> Recipe:
    """The recipe that a name stands for.

    ``cifar10/NETWORK`` and ``cifar100/NETWORK`` give the paper's recipe for any network of `network`, listed or not.

    Paper: appendix, "implementation details"; 2015 paper, Section 4.2.

    Args:
        name: for example ``cifar10/resnet110-preact``.

    Raises:
        ValueError: no such recipe (the nearest are suggested).
    """
    known = OWN | VARIANTS
    if name in known:
        return known[name]
    data, _, net = name.partition("/")
    if data == "cifar10" or data == "cifar100":
        try:
            network(net)
        except ValueError as error:
            raise ValueError(f"no recipe {name!r}{_suggest(name)} ({error})") from None
        return Recipe(network=net, data=DataSpec(name=data))
    raise ValueError(f"no recipe {name!r}{_suggest(name)}; `preresnet list recipes` shows all")


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name, recipe_names(), n=3)
    return f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
