"""``cachekd verify``: digests, counts and records of a whole cache; with a teacher, its scores."""

from __future__ import annotations

import random
import sys
from typing import Any

import click
from click.core import ParameterSource

from cachekd.config import RecheckConfig
from cachekd.errors import EXIT_CORRUPT, EXIT_INCOMPLETE, ConfigError
from cachekd.store.identity_files import read_identity
from cachekd.store.io import Location
from cachekd.store.names import shown
from cachekd.store.problems import Problem
from cachekd.store.reader import open_cache
from cachekd.store.repair import RepairReport
from cachekd.store.repair import repair as repair_cache
from cachekd.store.verify import VerifyReport, verify

from .kinds import Share
from .locations import with_locations
from .options import JSON_OPTION, build, options_of, values_of
from .output import emit
from .progress import Counted


def run(
    cache: str,
    partial: bool,
    repair: bool,
    sample: float | None,
    sample_seed: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Check every file, digest, count and record of a cache; exit code 4 if something is wrong.

    With --sample, files, records and seal are checked and a random share of the shards is read in
    whole. With --repair, what is bad is taken away, what follows from the rest is written again,
    and what is left is sealed; exit code 3 if the precompute command has to make something anew, 4
    if something is wrong that cannot be mended.

    With --teacher, a random sample of records is scored again, alone and in batches: what is stored
    must not differ from that by more than the teacher differs from itself. Another teacher than
    the cache's is refused with exit code 5. Interrupted, it ends with exit code 3: nothing was
    changed, and nothing is kept for another run.

    Example:
        cachekd verify ./cache --sample 5%
    """
    values = values_of(RecheckConfig, given, {})
    _refuse_idle(values, repair=repair, sample=sample, sample_seed=sample_seed, partial=partial)
    if repair:
        return _repair(cache, as_json)
    seed = random.SystemRandom().randrange(1 << 31) if sample_seed is None else sample_seed
    _verify(cache, partial, sample, seed, values, as_json)


def _verify(
    cache: str,
    partial: bool,
    sample: float | None,
    seed: int,
    values: dict[str, Any],
    as_json: bool,
) -> None:
    with Counted("verify", "records") as progress:
        report = verify(
            cache, partial=partial, sample=sample or 1.0, sample_seed=seed, progress=progress
        )
    location = Location(cache)
    problems = [told(problem, location) for problem in report.findings]
    result: dict[str, Any] = {
        "cache": shown(cache),
        "sealed": report.sealed,
        "files_checked": report.files,
        **_shards(report, as_json),
        **({} if sample is None else {"sample_seed": seed if as_json else str(seed)}),
        "records_checked": report.records,
    }
    if "teacher" in values and not problems:
        again = _score_again(cache, partial, values)
        problems += [{"message": message} for message in again.pop("problems")]
        result |= again if as_json else _flat(again)
    for problem in problems:
        click.echo(f"corrupt: {problem['message']}", err=True)
    emit(result | {"problems": problems if as_json else len(problems)}, as_json=as_json)
    if problems:
        click.echo(
            "cachekd verify --repair takes away what is bad and writes again what follows from the "
            "rest; the precompute command then makes anew what is lacking, and nothing else",
            err=True,
        )
        sys.exit(EXIT_CORRUPT)


def _shards(report: VerifyReport, as_json: bool) -> dict[str, Any]:
    """How many shards there are, and how many of them were read in whole."""
    if as_json:
        return {"shards": report.shards, "shards_checked": report.shards_checked}
    return {"shards_checked": f"{report.shards_checked:,} of {report.shards:,}"}


def told(problem: Problem, location: Location) -> dict[str, Any]:
    """A problem as an object: its parts, and all of it as a sentence."""
    return {**problem.to_json(), "message": problem.line(location)}


def _repair(cache: str, as_json: bool) -> None:
    location = Location(cache)
    with Counted("repair", "records") as progress:
        report = repair_cache(cache, progress=progress)
    for problem in report.found:
        click.echo(f"found: {problem.line(location)}", err=True)
    for line in report.problems:
        click.echo(f"cannot be mended: {line}", err=True)
    lists = {
        "removed": report.removed,
        "rebuilt": report.rebuilt,
        "make_anew": report.lacking,
    }
    found, left = ([told(p, location) for p in part] for part in (report.found, report.left))
    emit(
        {
            "cache": shown(cache),
            "found": found if as_json else len(found),
            **{k: v if as_json else ", ".join(v) or "nothing" for k, v in lists.items()},
            "problems": left if as_json else len(left),
            "generation": report.generation,
            "next": _next(location, report),
        },
        as_json=as_json,
    )
    if report.left:
        sys.exit(EXIT_CORRUPT)
    if report.lacking or report.generation is None:
        sys.exit(EXIT_INCOMPLETE)


def _next(location: Location, report: RepairReport) -> str:
    """What to do after a repair."""
    if report.left:
        return "restore the files that cannot be mended from a copy of the cache, then repair again"
    if not report.lacking and report.generation is None:
        return (
            "what is committed is whole, and not sealed: run the precompute command again to "
            "finish it, or cachekd seal"
        )
    if not report.lacking:
        return "nothing: the cache is whole"
    teacher = read_identity(location).provenance.get("teacher")
    return (
        "run the precompute command that made it again, with the same settings: cachekd precompute "
        f"--teacher {teacher} --data ... --cache {location.url}; it makes anew what is lacking and "
        "nothing else"
    )


def _refuse_idle(
    values: dict[str, Any],
    *,
    repair: bool,
    sample: float | None,
    sample_seed: int | None,
    partial: bool,
) -> None:
    """Refuse flags that do nothing beside the others; the environment may hold some for others."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in values if source(name) is ParameterSource.COMMANDLINE]
    if repair and (given or sample is not None or partial):
        raise ConfigError(
            "--repair looks at all that is committed and needs no teacher: leave --sample, "
            "--partial and --teacher out, and verify again when it is done"
        )
    if given and "teacher" not in values:
        flag = given[0].replace("_", "-")
        raise ConfigError(f"--{flag} is for scoring records again; name the teacher: --teacher")
    if sample_seed is not None and sample is None:
        raise ConfigError("--sample-seed is for a random share of the shards; name it: --sample 5%")


def _score_again(cache: str, partial: bool, values: dict[str, Any]) -> dict[str, Any]:
    from cachekd.evaluation.recheck import recheck

    opened = open_cache(cache, partial=partial)
    attention = opened.identity.capture["attn_implementation"]
    known = {} if attention == "unknown" else {"attn_implementation": attention}
    settings = build(RecheckConfig, {**known, **values})
    return recheck(opened, settings)


def _flat(report: dict[str, Any]) -> dict[str, Any]:
    """The report for a terminal: a line a quantity."""
    lines = {
        f"{name}, nats": f"off by {found['difference_largest']:.2g} at most, "
        f"{found['difference_mean']:.2g} in the mean (batch shapes: {found['noise_largest']:.2g}, "
        f"{found['noise_mean']:.2g})"
        for name, found in report["differences"].items()
    }
    return {key: value for key, value in report.items() if key != "differences"} | lines


command = with_locations(
    "verify",
    run,
    [
        click.Argument(["cache"]),
        click.Option(["--partial"], is_flag=True, help="Verify what is committed, sealed or not."),
        click.Option(["--repair"], is_flag=True, help="Mend what can be mended; see above."),
        click.Option(
            ["--sample"],
            type=Share(),
            help="Share of the shards, drawn at random, that is read in whole, such as 5%.",
        ),
        click.Option(
            ["--sample-seed"],
            type=click.IntRange(min=0),
            help="Seed of that draw; else every call draws anew, and tells its seed.",
        ),
        *options_of(RecheckConfig),
        JSON_OPTION,
    ],
)
