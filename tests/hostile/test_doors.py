"""Doors: wherever two things meet, what does not belong together is refused, and named.

A table of mutations by doors, each in both directions. At a door that is passed the next thing is
the loading of a model, which ends the command here.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from runs import TRAINING
from tiny import Family, Ran, chat_rows, save_model, write_rows
from transformers import AutoModelForCausalLM

import cachekd as api
from cachekd import PrecomputeConfig
from cachekd.config import TrainConfig
from cachekd.errors import MismatchError
from cachekd.rollouts.teacher import find_teacher

REACHED = 99
WIDTH = 384  # rows of the embedding: the added token has one, and so has padding
Run = Callable[..., Ran]


@dataclass(frozen=True)
class Mutation:
    """What is changed of a model's folder or of a run's settings, and what the doors say of it.

    An outcome is what a refusal or warning names, or "" where the door is passed in silence.
    """

    change: Callable[[Path], None] = lambda folder: None
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    warned: Mapping[str, str] = field(default_factory=dict)


def of_json(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return mutate


def add_token(raw: dict[str, Any]) -> None:
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 320, "content": "<|new|>"})


def swap_ids(raw: dict[str, Any]) -> None:
    vocab = raw["model"]["vocab"]
    a, b = list(vocab)[40:42]
    vocab[a], vocab[b] = vocab[b], vocab[a]


def swap_merges(raw: dict[str, Any]) -> None:
    merges = raw["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("| trim", "| trim | lower"))


def of_tokenizer(change: Callable[[dict[str, Any]], None]) -> Mutation:
    told = "source.tokenizer"
    return Mutation(
        of_json("tokenizer.json", change),
        refused={
            "precompute": told,
            "merge": told,
            "verify": told,
            "student": "has tokenizer",
            "caches": "different tokenizers",
            "eval": "different tokenizers",
            "data": "has tokenizer",
        },
    )


def of_policy(**tokens: str) -> Mutation:
    (name,) = tokens
    every = dict.fromkeys(("precompute", "merge", "student", "data", "caches", "eval"), name)
    return Mutation(of_json("tokenizer_config.json", lambda raw: raw.update(tokens)), warned=every)


def of_source(name: str, change: Callable[[Path], None] | None = None, **settings: Any) -> Mutation:
    doors = ("precompute", "merge", "verify", "caches", "eval")
    refused = dict.fromkeys(doors, f"{name}: '")
    return Mutation(change or (lambda folder: None), settings, refused=refused)


def of_capture(name: str, **settings: Any) -> Mutation:
    doors = ("precompute", "merge")
    return Mutation(settings=settings, refused=dict.fromkeys(doors, f"capture.{name}"))


def of_provenance(name: str, *more: str, **settings: Any) -> Mutation:
    doors = ("precompute", "merge", "caches", "eval", *more)
    return Mutation(settings=settings, warned=dict.fromkeys(doors, name))


CONFIGURATION = "a padded embedding in the configuration"
TEMPLATE_DOORS = ("precompute", "merge", "student", "caches", "eval")
MUTATIONS: dict[str, Mutation] = {
    "an added token": of_tokenizer(add_token),
    "two swapped ids": of_tokenizer(swap_ids),
    "other merges": of_tokenizer(swap_merges),
    "another normaliser": of_tokenizer(lambda raw: raw.update(normalizer={"type": "NFKC"})),
    "another bos": of_policy(bos_token="<|system|>"),
    "another eos": of_policy(eos_token="<|end|>"),
    "another pad": of_policy(pad_token="<|end|>"),
    "another chat template": Mutation(
        other_template,
        refused={"data": "chat template"},
        warned=dict.fromkeys(TEMPLATE_DOORS, "chat_template"),
    ),
    CONFIGURATION: Mutation(of_json("config.json", lambda raw: raw.update(vocab_size=WIDTH + 64))),
    "a padded embedding in the weights": of_source(
        "weights", lambda folder: save_model(folder, WIDTH + 64, width=32, layers=1, seed=1)
    ),
    "other weights": of_source(
        "weights", lambda folder: save_model(folder, WIDTH, width=32, layers=1, seed=9)
    ),
    "another revision": of_provenance("revision", "verify", revision="other"),
    "another dtype": of_source("dtype", dtype="bfloat16"),
    "another max_length": Mutation(settings={"max_length": 100, "on_long": "truncate"}),
    "another temperature": of_capture("temperatures", temperatures=(1.0, 2.0, 4.0)),
    "another prompt template": of_provenance("prompt_template", prompt_template="plain"),
    "another prompt mask": of_capture("rows", rows="response"),
}
OF_A_RUN = ("revision", "dtype")  # settings that a teacher is named with, whoever asks


@dataclass(frozen=True)
class World:
    """The one side of every door, and where the other side is made."""

    root: Path
    data: Path
    teacher: Path
    student: Path
    cache: Path

    def folder(self, name: str, kind: str) -> Path:
        """A teacher or student with this mutation."""
        import shutil

        path = self.root / name.replace(" ", "-") / kind
        if not path.exists():
            shutil.copytree(self.teacher if kind == "teacher" else self.student, path)
            MUTATIONS[name].change(path)
        return path

    def mutated(self, name: str) -> Path:
        """A cache of the same data with this mutation."""
        path = self.root / "caches" / name.replace(" ", "-")
        if not path.exists():
            # Weights do not fit a configuration alone: who it is says nothing of that.
            loads = name != CONFIGURATION
            folder = self.folder(name, "teacher") if loads else self.teacher
            captured(folder, self.data, path, **MUTATIONS[name].settings)
        return path


def captured(teacher: Path, data: Path, cache: Path, **settings: Any) -> None:
    settings = {"threads": 1, "writers": 0, **settings}
    api.precompute(
        PrecomputeConfig(teacher=str(teacher), data=(str(data),), cache=str(cache), **settings)
    )


@pytest.fixture(scope="module")
def world(family: Family, tmp_path_factory: pytest.TempPathFactory) -> World:
    import shutil

    root = tmp_path_factory.mktemp("doors")
    teacher, student = root / "teacher", root / "student"
    for folder, seed in ((teacher, 1), (student, 2)):
        shutil.copytree(family.teacher, folder)
        save_model(folder, WIDTH, width=32, layers=1, seed=seed)
    data = write_rows(root / "data.jsonl", chat_rows(4))
    captured(teacher, data, root / "cache")
    return World(root, data, teacher, student, root / "cache")


@pytest.fixture
def door(
    cachekd: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[Ran, list[str]]]:
    """Runs a command up to the loading of a model; what it said, and its warnings."""

    def stop(*args: Any, **kwargs: Any) -> None:
        sys.exit(REACHED)

    def run(*args: object) -> tuple[Ran, list[str]]:
        caplog.clear()
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(AutoModelForCausalLM, "from_pretrained", stop)
            ran = cachekd(*args)
        return ran, [record.getMessage() for record in caplog.records]

    return run


def named(settings: Mapping[str, Any]) -> list[object]:
    flags: list[object] = []
    for name, value in settings.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        flags += [f"--{name.replace('_', '-')}", text]
    return flags


def commands(world: World, name: str, out: Path) -> dict[str, list[list[object]]]:
    """The commands of each door, this side first and then the other."""
    settings = MUTATIONS[name].settings
    teacher, student = world.folder(name, "teacher"), world.folder(name, "student")
    here, there = world.cache, world.mutated(name)
    more = write_rows(out / "more.jsonl", chat_rows(6))
    capture = ["precompute", "--threads", 1, "--data", more]
    train = ["train", "--output-dir", out / "out"]
    own = [*train, "--student", world.student]
    asked = named({key: value for key, value in settings.items() if key in OF_A_RUN})
    verify = ["verify", "--samples", 1, "--threads", 1]
    return {
        "precompute": [
            [*capture, "--teacher", teacher, "--cache", here, *named(settings)],
            [*capture, "--teacher", world.teacher, "--cache", there],
        ],
        "merge": [
            ["merge", here, there, "--out", out / "one"],
            ["merge", there, here, "--out", out / "two"],
        ],
        "verify": [
            [*verify, here, "--teacher", teacher, *asked],
            [*verify, there, "--teacher", world.teacher],
        ],
        "student": [
            [*train, "--cache", here, "--student", student],
            [*own, "--cache", there],
        ],
        "data": [[*train, "--cache", here, "--student", student, "--data", world.data]],
        "caches": [
            [*own, "--cache", f"a={here}", "--cache", f"b={there}"],
            [*own, "--cache", f"a={there}", "--cache", f"b={here}"],
        ],
        "eval": [
            [*own, "--cache", here, "--eval-cache", there],
            [*own, "--cache", there, "--eval-cache", here],
        ],
    }


ALWAYS = ("two swapped ids", "another eos", "another dtype", "another temperature")
SHARE = [
    name if name in ALWAYS else pytest.param(name, marks=pytest.mark.reliability)
    for name in MUTATIONS
]


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
