"""Terms of a sum of objectives: built from settings, and their needs as one.

In: a mapping of names to weights, or to a weight and options. Out: `Term`s, and one `Needs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from cachekd.errors import ConfigError
from cachekd.objectives import Needs, Objective, build
from cachekd.plugins import find

_NAME = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Term:
    """One objective of a sum."""

    name: str
    weight: float
    objective: Objective


def terms_of(settings: Mapping[str, Any]) -> tuple[Term, ...]:
    """The terms that settings ask for.

    Args:
        settings: of each term its weight, or a mapping of ``weight``, ``objective`` (default: the
            name of the term) and options of that objective.

    Raises:
        ConfigError: there is no term, a setting cannot be used, or a term is a sum itself.
    """
    terms = tuple(_term(str(name), value) for name, value in settings.items())
    if not any(term.weight for term in terms):
        raise ConfigError(
            "terms: expected at least one with a weight above 0; found "
            f"{dict(settings) or 'none'}. Name them: --terms sft=1 --terms span=1"
        )
    return terms


def _term(name: str, value: Any) -> Term:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"terms: expected names of letters, digits and underscores; found {name!r}. An "
            "objective of another name is given as objective: NAME within its term"
        )
    given = dict(value) if isinstance(value, Mapping) else {"weight": value}
    given = {str(key).replace("-", "_"): item for key, item in given.items()}
    weight = _number(f"terms.{name}: weight", given.pop("weight", 1.0))
    plugin = str(given.pop("objective", name))
    kind = find("objectives", plugin)
    if kind is find("objectives", "sum"):
        raise ConfigError(f"terms.{name}: a sum cannot be a term; write its terms here instead")
    defaults = {item.name: _default(item) for item in fields(kind.Options)}
    options = {
        key: _like(f"terms.{name}.{key}", item, defaults.get(key)) for key, item in given.items()
    }
    try:
        objective = build(plugin, options)
    except ConfigError as error:
        raise ConfigError(f"terms.{name}: {error}") from error
    return Term(name=name, weight=weight, objective=objective)


def _number(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number < float("inf"):
        raise ConfigError(f"{what}: expected a number >= 0; found {value!r}")
    return number


def _default(field: Field[Any]) -> Any:
    """Default of an option; None where it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def _like(what: str, value: Any, default: Any) -> Any:
    """A value of the default's kind; YAML reads 1e-4 as text, and 2 as no float."""
    if default is None:
        return value
    if isinstance(default, float):
        try:
            return value if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{what}: expected a number; found {value!r}") from None
    kind = Mapping if isinstance(default, Mapping) else type(default)
    if not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool):
        raise ConfigError(f"{what}: expected {kind.__name__.lower()}; found {value!r}")
    return value


def merged(terms: Sequence[Term]) -> Needs:
    """The needs of all terms as one.

    Raises:
        ConfigError: two terms cannot be had together, or a need is not known here.
    """
    needs = [term.objective.needs() for term in terms]
    together: dict[str, Any] = {}
    for name in dict.fromkeys(item.name for need in needs for item in fields(need)):
        if name not in _MERGE:
            raise ConfigError(
                f"objective sum does not know how terms need {name!r} together; train on the "
                "objective that needs it alone"
            )
        together[name] = _MERGE[name](name, [getattr(need, name) for need in needs], terms)
    return Needs(**together)


_Merge = Callable[[str, list[Any], Sequence[Term]], Any]


def _any(name: str, values: list[Any], terms: Sequence[Term]) -> bool:
    return any(values)


def _all(name: str, values: list[Any], terms: Sequence[Term]) -> bool:
    return all(values)


def _union(name: str, values: list[Any], terms: Sequence[Term]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(item for value in values for item in value))


def _weighted(name: str, values: list[Any], terms: Sequence[Term]) -> float:
    return float(sum(term.weight * value for term, value in zip(terms, values, strict=True)))


def _greatest(name: str, values: list[Any], terms: Sequence[Term]) -> Any:
    return max(values)


def _same(name: str, values: list[Any], terms: Sequence[Term]) -> Any:
    wanted = {t.name: value for t, value in zip(terms, values, strict=True) if value is not None}
    if len(set(wanted.values())) > 1:
        raise ConfigError(
            f"objective sum: its terms want different {name}: "
            f"{', '.join(f'{term} {value}' for term, value in wanted.items())}. Give them the same"
        )
    return next(iter(wanted.values()), None)


_MERGE: dict[str, _Merge] = {
    "temperatures": _union,
    "kinds": _union,
    "one_teacher": _any,
    "sampled": _all,
    "unigram": _any,
    "full": _any,
    "mass": _greatest,
    "next_known": _any,
    "dense": _any,
    "next_row": _any,
    "attention": _weighted,
    "routed": _any,
    "start": _same,
    "generated": _any,
    "spans": _same,
    "rollouts": _same,
}
