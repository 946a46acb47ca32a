import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import preresnet
from preresnet.recipe import DataSpec, Optim, Recipe, Schedule


def test_the_papers_schedule() -> None:
    schedule = preresnet.recipe("cifar10/resnet110-preact").schedule
    expected = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert schedule.steps == 64_000
    for step, lr in expected.items():
        assert schedule.at(step) == pytest.approx(lr, rel=1e-12)


def test_the_papers_recipe() -> None:
    recipe = preresnet.recipe("cifar10/resnet164-original")
    assert recipe.global_batch == 128
    assert (recipe.optim.momentum, recipe.optim.weight_decay, recipe.optim.nesterov) == (0.9, 1e-4, False)
    assert (recipe.data.pad, recipe.data.flip, recipe.data.normalise) == (4, True, "per_pixel_mean")
    assert recipe.data.holdout == 0


def test_the_dagger_of_table_4_is_the_authors_code() -> None:
    recipe = preresnet.recipe("cifar10/resnet1001-preact-batch64")
    assert recipe.global_batch == 64
    assert recipe.schedule.steps == 200 * 782
    assert recipe.schedule.milestones == (80 * 782, 121 * 782)
    assert recipe.schedule.at(0) == 0.1
    assert recipe.optim.nesterov


@given(steps=st.integers(1, 5_000), warmup=st.integers(0, 6_000))
def test_one_cycle_rises_to_the_peak_and_ends_near_zero(steps: int, warmup: int) -> None:
    schedule = Schedule(steps=steps, lr=0.4, shape="one_cycle", warmup_steps=min(warmup, steps - 1))
    rates = [schedule.at(step) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 0.4 for rate in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] <= 0.4 / (steps - schedule.warmup_steps) + 1e-12


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Recipe(network="x", data=DataSpec(name="digits"), global_batch=0), "global_batch=0"),
        (lambda: Recipe(network="x", data=DataSpec(name="digits"), norm_batch=48), "norm_batch=48"),
        (lambda: DataSpec(name="mnist"), "'digits', 'cifar10', 'cifar100', 'imagenet' or 'folder'"),  # type: ignore[arg-type]
        (lambda: DataSpec(name="digits", pad=-1), "pad=-1"),
        (lambda: DataSpec(name="digits", holdout=-5), "holdout=-5"),
        (lambda: Optim(momentum=1.0), "momentum=1.0"),
        (lambda: Optim(momentum=0.0, nesterov=True), "nesterov"),
        (lambda: Schedule(steps=0), "steps=0"),
        (lambda: Schedule(lr=0.0), "lr=0.0"),
        (lambda: Schedule(milestones=(5, 5)), "milestones"),
    ],
)
def test_a_field_out_of_range_is_named(build: object, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        build()  # type: ignore[operator]


def test_recipes_are_frozen() -> None:
    recipe = preresnet.recipe("digits/resnet20-preact")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.global_batch = 3  # type: ignore[misc]
