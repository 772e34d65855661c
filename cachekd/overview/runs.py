"""All figures of the page of training runs, as plain JSON types.

In: runs. Out: what each came to, which is best where they can be compared, mean and deviation of
those that differ by their seed alone, the settings that differ and those that do not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cachekd.overview.record import Run
from cachekd.report.text import finite, short, text_of
from cachekd.training.figures import CURVES, curve, figures_of, held_out

_UNTOLD = frozenset("output_dir resume_from_checkpoint logging_dir run_name hub_token".split())
"""Settings that say where a run is, not what it does."""
_DEFAULT_SEED = "42"  # of transformers, whose defaults a record leaves out
_LOWER = ("loss", "kl", "ce")
_LETTERS = 40  # of a setting's value in the name of a group
_COSTS = ("training_seconds", "tokens_per_second", "peak_memory_bytes", "peak_cuda_memory_bytes")


def runs_report(
    runs: Sequence[Run],
    evaluations: Mapping[str, Mapping[str, float | None]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Figures of runs; a value that is no finite number is None.

    Args:
        runs: at least one.
        evaluations: further final figures by run, see `cachekd.overview.evaluated`.
    """
    settings = {run.name: settings_of_run(run) for run in runs}
    names = list(dict.fromkeys(name for run in settings.values() for name in run))
    told = {name: {run: own.get(name) for run, own in settings.items()} for name in names}
    differ = {name: values for name, values in told.items() if len(set(values.values())) > 1}
    finals = {run.name: final_of(run, evaluations.get(run.name, {})) for run in runs}
    return {
        "kind": "runs",
        "runs": [_run(run, finals[run.name]) for run in runs],
        "best": _best(runs, finals, differ),
        "groups": _groups(runs, settings, finals, differ),
        "differences": differ,
        "same_for_all": {
            name: next(iter(values.values())) for name, values in told.items() if name not in differ
        },
        "curves": _curves(runs),
    }


def settings_of_run(run: Run) -> dict[str, str]:
    """Settings that decide what a run does, as text: its own, its objective's and its Trainer's.

    Of the Trainer's those are told that are not their default.
    """
    facts, untold = run.facts, {*_UNTOLD, "training", "objective_options"}
    caches = [f"{cache.get('name')} {str(cache.get('root'))[:12]}" for cache in facts["caches"]]
    values: dict[str, Any] = {
        **facts["config"],
        **facts["objective"].get("options", {}),
        **{name: facts.get(name) for name in ("student", "loss_mask", "max_length")},
        "seed": _DEFAULT_SEED,
        **facts["training_arguments"],
        "caches": caches,
        **{f"version of {name}": version for name, version in facts["versions"].items()},
    }
    return {
        name: text_of(value)
        for name, value in values.items()
        if name not in untold and value not in (None, "", [], {}, ())
    }


def final_of(run: Run, further: Mapping[str, float | None]) -> dict[str, float | None]:
    """What a run came to: held-out figures, the mean training loss, time and memory."""
    facts = run.facts
    used = facts.get("throughput") or {}
    found = {**held_out(facts.get("final_eval")), **further, "train_loss": facts.get("train_loss")}
    found |= {name: used.get(name) for name in _COSTS}
    return {name: finite(value) for name, value in found.items() if value is not None}


def _run(run: Run, final: Mapping[str, float | None]) -> dict[str, Any]:
    facts = run.facts
    named = ("status", "steps", "student", "parameters", "trained_parameters", "best_step")
    return {
        "name": run.name,
        "folder": run.folder,
        "objective": facts["config"].get("objective"),
        **{name: facts.get(name) for name in named},
        "final": dict(final),
        "caches": [*facts["caches"], *filter(None, [facts.get("eval_cache")])],
        "rollouts": _plain(facts.get("rollouts")),
        "log_rows": len(run.history),
    }


def _best(
    runs: Sequence[Run],
    finals: Mapping[str, Mapping[str, float | None]],
    differ: Mapping[str, Any],
) -> dict[str, str]:
    """The best run of each figure by which runs can be compared.

    Held-out figures compare on one held-out set; losses by one objective, times by one way to the
    end alone.
    """
    evals = {str(run.facts.get("eval_cache")) + str(run.facts.get("eval_data")) for run in runs}
    objective = {name for run in runs for name in run.facts["objective"].get("options", {})}
    same_loss = not ({"objective", *objective} & set(differ))
    lower = {f"{prefix}{name}" for _, prefix in CURVES[1:] for name in _LOWER}
    if len(evals) > 1:
        lower = set()
    if not same_loss:
        lower -= {"eval_loss", "eval_text_loss"}
    lower |= {"peak_memory_bytes", "peak_cuda_memory_bytes"}
    if len(set(map(_ended, runs))) == 1:
        lower.add("training_seconds")
    best = {}
    for name in [*sorted(lower), "tokens_per_second"]:
        values = {run: own[name] for run, own in finals.items() if own.get(name) is not None}
        if len(values) > 1:
            pick = max if name == "tokens_per_second" else min
            best[name] = pick(values, key=lambda run: values[run] or 0.0)
    return best


def _groups(
    runs: Sequence[Run],
    settings: Mapping[str, Mapping[str, str]],
    finals: Mapping[str, Mapping[str, float | None]],
    differ: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Runs that came equally far and differ by their seeds alone; a run without such is alone.

    Nothing where no two runs differ by their seeds alone.
    """
    ended = {run.name: _ended(run) for run in runs}
    others = [name for name in differ if not _is_seed(name)]
    if len(set(ended.values())) > 1:
        others.append("ended")
    together: dict[tuple[str | None, ...], list[str]] = {}
    for run, own in settings.items():
        known = {**own, "ended": ended[run]}
        together.setdefault(tuple(known.get(name) for name in others), []).append(run)
    if not any(_by_seed(members, settings) for members in together.values()):
        return []
    groups = []
    for name, members in zip(_short_names(others, list(together)), together.values(), strict=True):
        # Equal seeds say nothing of what chance does: such runs stand alone.
        parts = [members] if _by_seed(members, settings) else [[run] for run in members]
        groups += [
            {
                "name": name if len(parts) == 1 else f"{name}: {part[0]}",
                "runs": part,
                "seeds": [_seeds(settings[run]) for run in part],
                "figures": _means([finals[run] for run in part]),
            }
            for part in parts
        ]
    return groups


def _by_seed(members: Sequence[str], settings: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether equal runs have at least two seeds."""
    return len({_seeds(settings[run]) for run in members}) > 1


def _short_names(names: Sequence[str], keys: Sequence[tuple[str | None, ...]]) -> list[str]:
    """Groups by the fewest settings that tell them apart, the first ones if there is a choice."""
    kept = list(range(len(names)))
    for place in reversed(range(len(names))):
        fewer = [one for one in kept if one != place]
        if len({tuple(key[one] for one in fewer) for key in keys}) == len(keys):
            kept = fewer
    return [
        ", ".join(f"{names[one]} {short(key[one] or 'unset', _LETTERS)}" for one in kept)
        or "all runs"
        for key in keys
    ]


def _ended(run: Run) -> str:
    """How a run ended, and after how many steps."""
    return f"{run.facts.get('status')} at step {run.facts.get('steps')}"


def _is_seed(name: str) -> bool:
    return name == "seed" or name.endswith("_seed")


def _seeds(own: Mapping[str, str]) -> str:
    return ", ".join(value for name, value in sorted(own.items()) if _is_seed(name))


def _means(finals: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Mean of each figure, its sample deviation (None: of one run), and how many runs have it."""
    found = {}
    for name in dict.fromkeys(name for final in finals for name in final):
        values = [value for final in finals if (value := final.get(name)) is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            mean = statistics.fmean(values)
            found[name] = {"mean": mean, "deviation": deviation, "runs": len(values)}
    return found


def _curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each figure that was logged, on what, and the steps and values of each run that has it."""
    shown = []
    for name in figures_of([row for run in runs for row in run.history]):
        for about, prefix in CURVES:
            lines = [
                {"run": run.name, "steps": steps, "values": [finite(value) for value in values]}
                for run in runs
                for steps, values in [curve(run.history, prefix + name)]
                if steps
            ]
            if lines:
                shown.append({"figure": name, "on": about, "lines": lines})
    return shown


def _plain(value: Any) -> Any:
    """A value in which each number that JSON does not have is None."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return finite(value) if isinstance(value, float) else value
