"""What must hold before anything is measured: places, columns, an objective, and a right pair.

In: settings. Out: the teacher's facts and the student's folder. No weight is loaded, and no library
of models imported: what is wrong is told at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cachekd.config import BenchmarkConfig, precompute_config
from cachekd.data.columns import check_columns, column_map
from cachekd.data.models import model_config, resolve_model, weight_files
from cachekd.data.sources import first_rows
from cachekd.errors import ConfigError, MismatchError
from cachekd.objectives import build
from cachekd.plugins import find
from cachekd.report.files import check_writable
from cachekd.store.tokenizer import tokenizer_facts
from cachekd.teachers import TeacherFacts
from cachekd.training.student import refuse_adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A teacher and a student of one tokenizer."""

    facts: TeacherFacts
    student: Path


def check_outputs(config: BenchmarkConfig) -> None:
    """Refuse places that cannot be written to, before hours are measured.

    Raises:
        ConfigError: names the place.
    """
    if config.out is not None:
        check_writable(Path(config.out), "out")
    if config.plots_dir is not None:
        check_writable(Path(config.plots_dir), "plots_dir", folder=True)


def checked(config: BenchmarkConfig) -> Pair:
    """The pair, known to belong together.

    Raises:
        ConfigError: a place cannot be written to, or the objective has no cached and no live side
            to compare.
        DataError: a file has no rows, or columns that make no sample.
        MismatchError: different tokenizers; names both.
        TeacherError: there is no such model.
    """
    check_outputs(config)
    check_objective(config)
    check_data(config)
    settings = precompute_config(config)
    facts: TeacherFacts = find("teachers", settings.backend).identify(settings)
    student = resolve_model(config.student)
    refuse_adapter(student)
    model_config(student)
    weight_files(student)
    own, other = tokenizer_facts(student), tokenizer_facts(facts.tokenizer_folder)
    if own != other:
        raise MismatchError(
            f"benchmark: the student {config.student} has tokenizer {own.digest} with "
            f"{own.vocab_size} tokens, the teacher {config.teacher} has {other.digest} with "
            f"{other.vocab_size}. Use a teacher and a student of one tokenizer"
        )
    return Pair(facts=facts, student=student)


def check_data(config: BenchmarkConfig) -> None:
    """Refuse files by their first rows.

    Raises:
        ConfigError, DataError: see `column_map` and `check_columns`.
    """
    names = column_map(config)
    for source, _, row in first_rows(config):
        check_columns(row, names, source)


def check_objective(config: BenchmarkConfig) -> None:
    """Refuse an objective that one cache of the data does not serve.

    Raises:
        ConfigError: says why.
    """
    name = config.objective
    needs = build(name, config.objective_options).needs()
    if needs.rollouts is not None:
        raise ConfigError(
            f"objective {name} trains on text that the student writes: its context moves with the "
            "student, so that only a live teacher can score it. Do not cache for it; what "
            "--score-cache of cachekd train does save is scoring the same text twice (replay, "
            "inner epochs, restarts). Compare an off-policy objective, such as kd"
        )
    if name == "sft":
        raise ConfigError(
            "objective sft learns nothing from a teacher; it is measured as the floor of the "
            "others. Compare an objective that has a teacher, such as kd"
        )
    if needs.attention or needs.routed or needs.start or needs.generated:
        raise ConfigError(
            f"objective {name} with these options takes attention, several teachers or responses "
            "that the teacher wrote; one capture of the data's log-probabilities does not serve "
            "it. Compare an objective of predictions, such as kd"
        )
    missing = sorted(set(needs.temperatures) - {1.0, *config.temperatures})
    if missing:
        raise ConfigError(
            f"objective {name} trains at temperature {missing[0]:g}, which is not captured: add it "
            "to --temperatures"
        )
