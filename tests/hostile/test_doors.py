"""Doors: wherever two things meet, what does not belong together is refused, and named.

A table of mutations by doors (`doors.MUTATIONS`), each in both directions. At a door that is passed
the next thing is the loading of a model, which ends the command here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doors import ALWAYS, MUTATIONS, OF_A_RUN, REACHED, SHARE, World, commands
from runs import TRAINING
from tiny import Ran

import cachekd as api
from cachekd.config import TrainConfig
from cachekd.errors import MismatchError
from cachekd.rollouts.teacher import find_teacher


@pytest.mark.parametrize("name", SHARE)
def test_every_door_says_what_it_should(
    world: World, tmp_path: Path, door: Callable[..., tuple[Ran, list[str]]], name: str
) -> None:
    mutation = MUTATIONS[name]
    for where, both in commands(world, name, tmp_path).items():
        for command in both:
            ran, warnings = door(*command)
            told = f"{where}: {ran.err} {warnings}"
            if where in mutation.refused:
                assert ran.code == 5, told
                assert mutation.refused[where] in ran.err, told
                assert "Traceback" not in ran.err and ran.out == ""
                continue
            assert ran.code == (0 if where == "merge" else REACHED), told
            found = [line for line in warnings if "not made alike" in line]
            if where in mutation.warned:
                assert any(mutation.warned[where] in line for line in found), told
                assert all(" / " in line for line in found), "both values are named"
            else:
                assert not found, told


def run_dir(world: World, cache: Path) -> Path:
    """A run of one step on a cache."""
    out = cache.with_name(cache.name + "-run")
    if not out.exists():
        training = {**TRAINING, "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
        api.train(
            TrainConfig(
                cache=(str(cache),),
                student=str(world.student),
                output_dir=str(out),
                training=training,
            )
        )
    return out


RESUMED = {
    "two swapped ids": "tokenizer",
    "other weights": "captures",
    "another dtype": "captures",
    "another temperature": "captures",
    "another prompt mask": "captures",
    "another prompt template": "other samples",
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_is_not_continued_on_another_cache(
    world: World, door: Callable[..., tuple[Ran, list[str]]], name: str
) -> None:
    flags = ["--max-steps", 2, "--resume-from-checkpoint", "true", "--seed", TRAINING["seed"]]
    for made, asked in ((world.cache, world.mutated(name)), (world.mutated(name), world.cache)):
        if RESUMED[name] == "tokenizer" and made != world.cache:
            break  # its student is another one
        command = ["train", "--cache", asked, "--student", world.student]
        ran, _ = door(*command, "--output-dir", run_dir(world, made), *flags)
        assert ran.code == 5 and RESUMED[name] in ran.err, ran.err


@pytest.mark.parametrize("name", SHARE)
def test_a_cache_gives_records_of_the_same_tokens_alone(world: World, name: str) -> None:
    """Whatever made the ids: `Cache.get` finds exactly these or nothing."""
    here, there = api.open_cache(str(world.cache)), api.open_cache(str(world.mutated(name)))
    met = 0
    for asking, asked in ((here, there), (there, here)):
        keys = {record.key for record in asked}
        for record in asking:
            if record.key not in keys:
                with pytest.raises(KeyError, match="has no targets for these"):
                    asked.get(record.input_ids)
                continue
            met += 1
            assert asked.get(record.input_ids).input_ids.tolist() == record.input_ids.tolist()
    assert met or name not in ("other weights", "another dtype")


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_score_cache_is_shared_by_equal_teachers_alone(world: World, name: str) -> None:
    """Scores lie under an id of all that decides them; another tokenizer is refused before."""

    def scores_id(teacher: Path, **further: Any) -> str:
        config = TrainConfig(
            cache=(),
            data=(str(world.data),),
            student=str(world.student),
            output_dir="unused",
            objective="gkd",
            teacher=str(teacher),
            **further,
        )
        return find_teacher(config, world.student, ()).scores_id

    mutation = MUTATIONS[name]
    teacher, own = world.folder(name, "teacher"), scores_id(world.teacher)
    if "has tokenizer" in mutation.refused.values():
        with pytest.raises(MismatchError, match=r"train: the student .* the live teacher"):
            scores_id(teacher)
        return
    asked = {f"teacher_{k}": v for k, v in mutation.settings.items() if k in OF_A_RUN}
    assert (scores_id(teacher, **asked) != own) == ("verify" in mutation.refused)


PROBE = """
import sys
from cachekd_cli.main import main
sys.argv = ["cachekd", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code
loaded = [name for name in ("torch", "transformers", "datasets", "peft") if name in sys.modules]
print("LOADED", code, *loaded, file=sys.stderr)
"""


LIGHT = [
    ("precompute", "other weights"),
    ("precompute", "another temperature"),
    ("merge", "another dtype"),
    ("verify", "other weights"),
    ("student", "two swapped ids"),
    ("caches", "other merges"),
    ("caches", "another dtype"),
    ("eval", "an added token"),
]


@pytest.mark.parametrize(
    ("where", "name"),
    [
        pytest.param(*pair, marks=() if pair[1] in ALWAYS else pytest.mark.reliability)
        for pair in LIGHT
    ],
)
def test_a_refusal_loads_no_model_library(
    world: World, tmp_path: Path, where: str, name: str
) -> None:
    for command in commands(world, name, tmp_path)[where]:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *map(str, command)], capture_output=True, text=True
        )
        assert done.stderr.splitlines()[-1] == "LOADED 5", done.stderr


def test_weights_are_read_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start reads no byte of them; an edit is seen though its time is the old one."""
    import os

    from cachekd.data import digests
    from cachekd.data.models import weights_digest

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((world.teacher / "model.safetensors").read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "memo"))
    read, digest = [], digests.hashlib.file_digest

    def counted(stream: Any, kind: str) -> Any:
        read.append(os.fstat(stream.fileno()).st_size)
        return digest(stream, kind)

    monkeypatch.setattr(digests.hashlib, "file_digest", counted)
    path = folder / "model.safetensors"
    first = weights_digest(folder)
    assert read == [path.stat().st_size]
    assert weights_digest(folder) == first and len(read) == 1, "the second start reads nothing"
    before = path.stat()
    content = path.read_bytes()
    other = tmp_path / "edited"
    other.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)  # the same size and time, another inode
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_size == before.st_size
    second = weights_digest(folder)
    assert second != first and len(read) == 2
    with path.open("ab") as stream:
        stream.write(b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights_digest(folder) not in (first, second) and len(read) == 3
