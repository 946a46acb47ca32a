"""A recipe with some of its fields changed, and what follows them.

Milestones and warm-up keep their shares of the steps, crops theirs of the image size, and a change of kind (image files
instead of a set in memory, one cycle instead of milestones) carries over what both kinds have. What is given itself
stays as given.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from preresnet.fields import UserError, field_types, from_json, member, members, nearest, tag_of, tags
from preresnet.recipe import DATA_SETS, ImagesInMemory, Milestones, PaperPhotographs, Recipe

PARTS = {name: kind for name, kind in field_types(Recipe).items() if tag_of(kind)}
# What keeps its proportion to a field, unless it is given too.
FOLLOWERS = {
    "schedule.steps": ("schedule.milestones", "schedule.warmup_steps"),
    "data.image_size": ("data.shorter_side", "data.test_crops", "data.test_sides", "data.small_size"),
}


def field_names() -> list[str]:
    """Every field of every kind of recipe, as the options of `preresnet train` name it."""
    found = []
    for name, kind in field_types(Recipe).items():
        inner = [f"{name}.{field.name}" for one in members(kind) for field in fields(one)]
        found += inner or [name]
    return list(dict.fromkeys(found))


def changed(base: Recipe, given: Mapping[str, Any]) -> tuple[Recipe, list[str]]:
    """A recipe with some fields changed.

    Args:
        base: the recipe.
        given: new values by the full name of a field: ``schedule.steps``.

    Returns:
        The new recipe, and a sentence for everything else that changed with it or that has no effect.

    Raises:
        ValueError: no such field, or a value that it does not take.
    """
    content, said = asdict(base), []
    for part, kind in PARTS.items():
        tag = tag_of(kind) or ""
        wanted = given.get(f"{part}.{tag}", content[part][tag])
        if wanted not in tags(kind):
            raise UserError(f"{part}.{tag}={wanted}: there is no such kind; {nearest(str(wanted), tags(kind))}")
        said += _convert(content, part, wanted, given)
    for leader, followers in FOLLOWERS.items():
        if leader in given:
            said += _follow(content, leader, given[leader], followers, given)
    of_others = without_effect(content, given)
    said += of_others.values()
    for name, value in given.items():
        if name in of_others:
            continue
        part, _, last = name.partition(".")
        inner, last = (content[part], last) if part in PARTS and last else (content, name)
        inner[last] = value  # `from_json` answers for all names and values together
    made = from_json(Recipe, json.dumps(content))
    return made, said + _idle(made, given)


def without_effect(content: Mapping[str, Any], given: Collection[str]) -> dict[str, str]:
    """Fields of the schedule that were given but belong to another shape of it, each with a sentence about that."""
    kind, shape = PARTS["schedule"], content["schedule"]["shape"]
    fields_of = {tag: field_types(one) for tag in tags(kind) if (one := member(kind, tag))}
    found = {}
    for name in given:
        part, _, last = name.partition(".")
        owners = [tag for tag, known in fields_of.items() if last in known]
        if part == "schedule" and owners and shape not in owners:
            found[name] = f"{name} has no effect: it is for schedule.shape={' or '.join(owners)}, and this is {shape}"
    return found


def in_proportion(value: Any, new: int, old: int) -> Any:
    """Counts that keep their share of another: 0 stays 0, others at least 1, and a rising sequence still rises."""
    if isinstance(value, int):
        return max(1, round(value * new / old)) if value else 0
    found: list[int] = []
    rises = list(value) == sorted(set(value))
    for one in value:
        least = found[-1] + 1 if found and rises else 0
        found.append(max(least, in_proportion(one, new, old)))
    return tuple(found)


def _convert(content: dict[str, Any], part: str, wanted: str, given: Mapping[str, Any]) -> list[str]:
    """Make a part of a recipe the member of its union that a tag names; a sentence if that is another one."""
    kind, tag, old = PARTS[part], tag_of(PARTS[part]) or "", content[part]
    new = member(kind, wanted)
    assert new is not None
    if new is member(kind, old[tag]):
        return []
    made: dict[str, Any] = {field.name: field.default for field in fields(new) if field.default is not MISSING}
    kept = [name for name in made if name in old and name != tag]
    if new is ImagesInMemory:  # photographs are cropped to any size, these have one
        kept.remove("image_size")
        made["image_size"] = DATA_SETS[wanted].size
    for leader, followers in FOLLOWERS.items():
        owner, _, name = leader.partition(".")
        if owner == part and name in kept:
            _follow({part: made}, leader, old[name], followers, given)
    content[part] = {**made, **{name: old[name] for name in kept}, tag: wanted}
    added = [name for name in made if name not in kept and name != tag and f"{part}.{name}" not in given]
    words = ", ".join(f"{name}={_word(made[name])}" for name in added)
    gone = ", ".join(name for name in old if name not in content[part])
    return [f"{part}.{tag}={wanted}" + (f" has {words}" if words else "") + (f"; it has no {gone}" if gone else "")]


def _follow(
    content: dict[str, Any], leader: str, value: Any, followers: tuple[str, ...], given: Collection[str]
) -> list[str]:
    """Bring what follows a field into proportion with its new value; a sentence about each."""
    part, _, name = leader.partition(".")
    inner, said = content[part], []
    old, inner[name] = inner[name], value
    if not isinstance(value, int) or value < 1 or value == old:
        return []
    for full in followers:
        last = full.partition(".")[2]
        if full in given or not inner.get(last):
            continue
        before, inner[last] = inner[last], in_proportion(inner[last], value, old)
        if before != inner[last]:
            said.append(f"{full}={_word(inner[last])} follows {leader}={value} ({_word(before)} of {old})")
    return said


def _idle(made: Recipe, given: Collection[str]) -> list[str]:
    """What was given and has no effect."""
    found, schedule, data = [], made.schedule, made.data
    if isinstance(schedule, Milestones) and {"schedule.steps", "schedule.milestones"} & set(given):
        late = [milestone for milestone in schedule.milestones if milestone >= schedule.steps]
        if late:
            found.append(f"schedule.milestones: {_word(late)} never comes in schedule.steps={schedule.steps}")
    if schedule.warmup_steps >= schedule.steps and {"schedule.steps", "schedule.warmup_steps"} & set(given):
        found.append(f"schedule.warmup_steps={schedule.warmup_steps}: all of the {schedule.steps} steps are warm-up")
    if isinstance(data, PaperPhotographs) and data.augment != "scale" and "data.shorter_side" in given:
        found.append(f"data.shorter_side={_word(data.shorter_side)} is for data.augment=scale alone")
    return found


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
