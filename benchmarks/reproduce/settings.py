"""What a reproduction is run on, and its command: sizes, models and data, from flags or YAML.

In: a settings class and a function of it. Out: a command with a flag for every field, and
``--config FILE`` with the same keys; flag > environment > YAML > default, as of ``cachekd``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cachekd.config import check_choices, option, required
from cachekd.errors import CachekdError, ConfigError

RESULTS = Path(__file__).parents[1] / "results"
_NOT_OF_RUNS = ("work", "results", "label", "seeds", "learning_rates")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all reproductions share."""

    teacher: str = required("Teacher: a local folder or a hub id.", group="Models")
    student: str = required("Student before any of the ways.", group="Models")
    data: tuple[str, ...] = required("Training data; may be repeated.", group="Data")
    dev_data: tuple[str, ...] = required("Data that learning rates are chosen on.", group="Data")
    test_data: tuple[str, ...] = required("Held-out data of all figures.", group="Data")
    split: str = option("train", "Split of --data, for a datasets name.", group="Data")
    dev_split: str = option("validation", "Split of --dev-data.", group="Data")
    test_split: str = option("test", "Split of --test-data.", group="Data")
    columns: Mapping[str, str] = option({}, "As of precompute: output=answer.", group="Data")
    samples: int = option(2400, "Training rows that are read.", group="Sizes")
    prompts: int = option(64, "Held-out rows that are answered and read.", group="Sizes")
    steps: int = option(120, "Updates of every way.", group="Sizes")
    batch_size: int = option(16, "Samples of an update.", group="Sizes")
    heldout_top_k: int = option(
        0, "Entries of the held-out targets that KL is taken to; 0: all.", group="Sizes"
    )
    max_length: int = option(
        320, "Longest sample in tokens; longer ones are skipped.", group="Sizes"
    )
    max_new_tokens: int = option(64, "Most tokens of a response.", group="Sizes")
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds of training.", group="Sizes")
    draws: tuple[int, ...] = option(
        (10, 20, 30, 40, 50), "Seeds of the answers to held-out prompts.", group="Sizes"
    )
    learning_rates: tuple[float, ...] = option(
        (5e-4, 1e-3, 2e-3),
        "Tried with the first seed of every family of ways, by ROUGE-L on --dev-data.",
        group="Sizes",
    )
    precompute: Mapping[str, Any] = option({}, "Further settings of precompute.", group="More")
    train: Mapping[str, Any] = option({}, "Further settings of train.", group="More")
    live: Mapping[str, Any] = option(
        {}, "Further settings of train where the teacher is live.", group="More"
    )
    training: Mapping[str, Any] = option({}, "Fields of TrainingArguments.", group="More")
    evaluate: Mapping[str, Any] = option({}, "Further settings of evaluate.", group="More")
    work: str = required("Folder of caches, students and the journal of runs.", group="Run")
    results: str = option(str(RESULTS), "Folder that the result is written to.", group="Run")
    label: str = option("", "Ends the result's name, where a script has several.", group="Run")

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("seeds", "draws"):  # flags give whole numbers as floats
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        for name in ("seeds", "draws", "learning_rates"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: expected at least one; found none")
        for name in ("samples", "prompts", "steps", "batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1; found {getattr(self, name)}")

    def of_runs(self) -> dict[str, Any]:
        """What every run depends on; seeds and rates may be added to a reproduction later."""
        values = {k: v for k, v in asdict(self).items() if k not in _NOT_OF_RUNS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def told(self) -> dict[str, Any]:
        """The same for a published result: of local paths the last part alone."""
        paths = ("teacher", "student", "expert", "general_teacher")
        told: dict[str, Any] = {}
        for name, value in self.of_runs().items():
            if name in paths and isinstance(value, str):
                told[name] = _short(value)
            elif name.endswith("data"):
                told[name] = [_short(item) for item in value]
            else:
                told[name] = value
        return {**told, "seeds": list(self.seeds), "learning_rates": list(self.learning_rates)}


def _short(place: str) -> str:
    """The last part of a local path; a hub id as it is."""
    return Path(place).name if os.path.isabs(place) else place


def run_command(
    kind: type[Settings], function: Callable[[Any], Mapping[str, Any]], about: str | None
) -> None:
    """Read the settings of a class from the command line, and call a function with them."""
    import click
    from cachekd_cli.options import (
        CONFIG_OPTION,
        Dashed,
        build,
        options_of,
        read_yaml,
        refuse_unknown,
        values_of,
    )

    flags = options_of(kind)

    def run(config: str | None, **given: Any) -> None:
        from_yaml = read_yaml(config)
        refuse_unknown(list(from_yaml), [flag.name or "" for flag in flags], config or "")
        try:
            function(build(kind, values_of(kind, given, from_yaml)))
        except CachekdError as error:
            raise click.ClickException(str(error)) from error

    Dashed("reproduce", callback=run, params=[*flags, CONFIG_OPTION], help=about)()
