"""Frozen dataclasses as JSON and back, and what is wrong with one of their fields in words for a user."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, overload

import pydantic

T = TypeVar("T")

STRICT = pydantic.ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class UserError(ValueError):
    """What somebody gave cannot be used: says what was given, what is allowed and what to do. Exit code 2."""


def require(condition: bool, message: str) -> None:
    """Raise `UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def to_json(value: Any) -> str:
    """A frozen dataclass of this package as JSON text; `from_json` gives back an equal one."""
    return pydantic.TypeAdapter(type(value)).dump_json(value, indent=2).decode()


@overload
def from_json(kind: type[T], text: str | bytes) -> T: ...
@overload
def from_json(kind: Any, text: str | bytes) -> Any: ...
def from_json(kind: Any, text: str | bytes) -> Any:
    """The inverse of `to_json`.

    Args:
        kind: the dataclass, or a union of several that a tag tells apart.
        text: JSON.

    Raises:
        ValueError: text is not JSON, or a field is missing, unknown or out of range; every field is named.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        raise UserError(explain(error, kind)) from None


def with_fields(value: T, **changes: Any) -> T:
    """A frozen dataclass of this package with some fields changed.

    Raises:
        UserError: a field does not take its value.
    """
    try:
        return replace(value, **changes)  # type: ignore[type-var]
    except pydantic.ValidationError as error:
        raise UserError(explain(error)) from None


def read_json(path: Path, what: str) -> Any:
    """What a JSON file in UTF-8 holds, with or without a byte-order mark.

    Args:
        path: of the file.
        what: it is, for messages: ``the recipe file``.

    Raises:
        ValueError: the file cannot be read, or is not JSON; it is named.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"cannot read {what} {path}: it is not UTF-8 text; save it again as UTF-8") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {what} {path}: {error}") from None


def members(kind: Any) -> tuple[type, ...]:
    """The dataclasses that a field of this type may hold: one, or those of a tagged union."""
    inner = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return tuple(one for one in (get_args(inner) or (inner,)) if is_dataclass(one) and isinstance(one, type))


def tag_of(kind: Any) -> str | None:
    """The field that tells the members of a tagged union apart; None for anything else."""
    found = (getattr(one, "discriminator", None) for one in get_args(kind)[1:]) if get_origin(kind) is Annotated else ()
    return next((str(one) for one in found if one), None)


def member(kind: Any, tag: Any) -> type | None:
    """The member of a tagged union that a value of its tag stands for."""
    name = tag_of(kind) or ""
    return next((one for one in members(kind) if tag in get_args(field_types(one)[name])), None)


def tags(kind: Any) -> tuple[str, ...]:
    """Every value that the tag of a union may have."""
    name = tag_of(kind) or ""
    return tuple(tag for one in members(kind) for tag in get_args(field_types(one)[name]))


def field_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    return {field.name: field.type for field in fields(kind)}


def nearest(given: str, known: Sequence[str]) -> str:
    """A hint for a name that does not exist: those most like it, or all."""
    near = difflib.get_close_matches(given, known, n=2)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "dataclass": "an object with fields",
    "model_attributes": "an object with fields",
}


def explain(error: pydantic.ValidationError, kind: Any = None, within: str = "") -> str:
    """A validation error as one line: each field with what is wrong with it and what it takes.

    Args:
        error: from pydantic.
        kind: what was to be made; with it, tags of unions are left out of the names of fields, and the nearest names
            of an unknown field are given.
        within: name of the field that it was made for.
    """
    return "; ".join(dict.fromkeys(_explain(problem, kind, within) for problem in error.errors()))


def _explain(problem: Any, kind: Any, within: str) -> str:
    names, owner, member_of = [within] if within else [], None, ""
    for part in problem["loc"]:
        if tag_of(kind):  # pydantic names the tag too; the field's name says enough
            member_of, kind = f" with {tag_of(kind)}={part}", member(kind, part)
            continue
        names.append(str(part))
        found = members(kind)
        owner = found[0] if len(found) == 1 else None
        kind = get_args(kind)[0] if get_origin(kind) is tuple else field_types(owner).get(str(part)) if owner else None
    where, what = ".".join(names), _words(problem, list(field_types(owner)) if owner else [], member_of)
    return f"{where}: {what}" if where else what


def _words(problem: Any, known: list[str], member_of: str) -> str:
    kind, given, context = problem["type"], problem.get("input"), problem.get("ctx") or {}
    tag = str(context.get("discriminator", "")).strip("'")
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing":
        return "it is missing; give a value"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"there is no such field{member_of}" + (f"; {nearest(str(problem['loc'][-1]), known)}" if known else "")
    if kind == "union_tag_not_found":
        return f"{tag} is missing; it says which kind it is"
    if kind == "union_tag_invalid":
        return f"{tag}={context['tag']}: there is no such kind; it must be one of {context['expected_tags']}"
    if kind == "literal_error":
        return f"{given!r} given; it must be {context['expected']}"
    if kind == "finite_number":
        return f"{given} given; it must be a finite number"
    if kind in ("too_long", "too_short"):
        return (
            f"{context['actual_length']} values given; it takes {context.get('max_length', context.get('min_length'))}"
        )
    if kind == "json_invalid":
        return f"this is not JSON: {context['error']}"
    expected = _KINDS.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_exact"))
    shown = json.dumps(given, default=str) if isinstance(given, str | int | float | bool | list | None) else "an object"
    return f"{shown} given; it must be {expected}" if expected else problem["msg"]
