"""The record of a run: ``run.json`` in the output folder, and what an older one there means.

In: what a run was made of. Out: plain JSON types, written atomically.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.errors import ConfigError, MismatchError
from cachekd.store.identity import refuse_difference
from cachekd.store.io import Location
from cachekd.store.names import shown

if TYPE_CHECKING:
    from cachekd.store.reader import Cache

RECORD = "run.json"
_PACKAGES = ("cachekd", "torch", "transformers", "numpy", "pyarrow")


def check_output(folder: Path, student: Path, *, resume: bool) -> None:
    """Refuse to write over another run, or over the student that the run starts from.

    Raises:
        ConfigError: says what is in the way.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir: {folder} is a file; expected a folder, or nothing")
    if folder.resolve() == student.resolve():
        raise ConfigError(f"output_dir: {folder} is the student itself; choose another folder")
    if resume or not folder.exists():
        return
    if (folder / RECORD).exists() or any(folder.glob("checkpoint-*")):
        raise ConfigError(
            f"output_dir: {folder} holds another run. Continue it with resume_from_checkpoint: "
            "true, or choose another folder"
        )


def clock_of(folder: Path, *, resume: bool) -> str:
    """Now, or the time that the run in this folder began with.

    A template that prints the date must give the same tokens when a run is continued.
    """
    path = folder / RECORD
    if resume and path.exists():
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["clock"])
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
    return datetime.now().replace(microsecond=0).isoformat()


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path} cannot be read ({error!r}); choose another folder")


_SAME_WHEN_RESUMED = (
    "objective",
    "objective_options",
    "objective_learning_rate",
    "packing",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_modules_to_save",
    "reduction",
    "expert_domains",
    "mix",
    "mixture",
    "mixture_tail",
    "shuffle_shards",
)


def check_resumed(
    folder: Path,
    samples_digest: str,
    caches: Sequence[Cache],
    config: Mapping[str, Any],
    rows: Mapping[str, Any],
) -> None:
    """Refuse to continue a run on other samples, targets or another objective.

    Args:
        folder: of the run.
        samples_digest: of the samples as they are now.
        caches: as they are now.
        config: settings as they are now.
        rows: what else decides which rows are trained, as ``run.json`` names it.

    Raises:
        MismatchError: the recorded run trained on something else; names what differs.
    """
    path = folder / RECORD
    if not path.exists():
        return
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        recorded = run["counts"]["samples_digest"]
        left = {name: run["config"][name] for name in _SAME_WHEN_RESUMED}
        left["captures"] = [cache["capture_id"] for cache in run["caches"]]
        left |= {name: run[name] for name in rows}
        left["order seed"] = _order_seed(run["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    if recorded != samples_digest:
        raise MismatchError(
            f"resume: the run in {folder} was trained on other samples (digest {recorded}; now "
            f"{samples_digest}). Give it the same caches, loss mask and max_length, or start "
            "another run in another folder"
        )
    right = {name: config[name] for name in _SAME_WHEN_RESUMED}
    right["captures"] = [cache.identity.capture_id for cache in caches]
    right |= {**rows, "order seed": _order_seed(config)}
    refuse_difference("resume", left, right, f"the run in {folder}", "this run")


def check_step(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to continue with steps of another size, whatever the number of processes is.

    A run finds its place in an epoch by the number of its steps.

    Args:
        folder: of the run.
        facts: of the run as it is now, with ``total_train_batch_size``.

    Raises:
        ConfigError: some samples would be seen twice, and some missed.
    """
    path = folder / RECORD
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["total_train_batch_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    now = facts["total_train_batch_size"]
    if before != now:
        raise ConfigError(
            f"resume: a step of the run in {folder} took {before} rows; now it would take {now}, "
            "and samples would be missed or seen twice. Choose --per-device-train-batch-size and "
            f"--gradient-accumulation-steps so that, times the processes, they give {before}; or "
            "--ignore-data-skip true, which begins the epoch anew"
        )


def _order_seed(config: Mapping[str, Any]) -> int:
    """What the order of samples depends on beside the samples; transformers' default is 42."""
    given = config["training"].get("data_seed")
    return int(config["training"].get("seed", 42) if given is None else given)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json``, in whole or not at all."""
    text = json.dumps(record, indent=1, sort_keys=True, default=str)
    Location(str(folder)).replace(RECORD, text.encode())


def without_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without secrets: a value named ``..._token`` is not written down."""
    if config.get("teacher_token"):
        config = {**config, "teacher_token": "<CACHEKD_TEACHER_TOKEN>"}
    training = {
        key: f"<{key.upper()}>" if key.endswith("_token") and value else value
        for key, value in config["training"].items()
    }
    places = {
        name: [shown(url) for url in config[name]] for name in ("cache", "data") if config.get(name)
    }
    return {**config, **places, "training": training}


def cache_facts(cache: Cache) -> dict[str, Any]:
    """Which cache it was: name, ids and root digest."""
    return {
        "name": cache.name,
        "source_id": cache.identity.source_id,
        "asserted": "asserted" in cache.identity.source,
        "capture_id": cache.identity.capture_id,
        "root": cache.root,
        "sealed": cache.sealed,
        "samples": len(cache),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}
