"""What meets at a door: mutations of models and of runs, and what each door says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import chat_rows, save_model, write_rows

import cachekd
from cachekd import PrecomputeConfig

REACHED = 99
"""Exit code of a command that came as far as the loading of a model."""
WIDTH = 384  # rows of the embedding: the added token has one, and so has padding


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
    cachekd.precompute(
        PrecomputeConfig(teacher=str(teacher), data=(str(data),), cache=str(cache), **settings)
    )


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
