"""A vLLM engine in process: the records of transformers, and refusals before it is started."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine
import numpy as np
import pytest
import torch
from fake_engine import LLM, SamplingParams
from tiny import Family, Ran, chat_rows, write_rows

import cachekd
from cachekd.config import PrecomputeConfig
from cachekd.errors import CachekdError, ConfigError, DataError, MismatchError, TeacherError
from cachekd.plugins import find
from cachekd.teachers import Selection
from cachekd.teachers._vllm_engine import EngineTeacher, check_selection


def _config(family: Family, data: Path, cache: Path, **changes: Any) -> PrecomputeConfig:
    settings: dict[str, Any] = {
        "teacher": str(family.teacher),
        "data": (str(data),),
        "cache": str(cache),
        "backend": "vllm",
        "temperatures": (1.0,),
        "logits_top_k": 32,
        "logits_values": "float32",
        "threads": 1,
        "writers": 0,
        **changes,
    }
    return PrecomputeConfig(**settings)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", chat_rows(8))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    return fake_engine.install(monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"logits_selection": "top_k"},
        {"logits_top_p": 0.9, "logits_min_k": 2},
        {"logits_selection": "full", "rows": "response"},
    ],
)
def test_records_are_those_of_transformers(
    family: Family, rows: Path, tmp_path: Path, engine: type[LLM], changes: dict[str, Any]
) -> None:
    for backend in ("hf", "vllm"):
        config = _config(family, rows, tmp_path / backend, backend=backend, **changes)
        cachekd.precompute(config)
    expected, found = (cachekd.open_cache(str(tmp_path / name)) for name in ("hf", "vllm"))
    assert len(engine.made) == 1 and not engine.made[0].prefixes
    assert expected.identity.source_id == found.identity.source_id
    assert expected.identity.capture_id != found.identity.capture_id
    assert found.identity.capture["attn_implementation"] == "vllm"
    assert set(found.identity.capture["inexact"]) == {"entropy", "tail"}
    assert found.identity.capture["temperatures"] == [1.0]
    for left in expected:
        right, mine = found.get(left.input_ids), left.logits
        assert right is not None and np.array_equal(right.roles, left.roles)
        theirs = right.logits
        assert np.array_equal(mine.offsets, theirs.offsets)
        assert np.array_equal(mine.ids, theirs.ids)
        np.testing.assert_allclose(theirs.logprobs, mine.logprobs, atol=1e-5)
        np.testing.assert_allclose(theirs.next_logprob, mine.next_logprob, atol=1e-5)
        np.testing.assert_allclose(np.exp(theirs.tail), np.exp(mine.tail), atol=1e-5)
        assert (theirs.entropy <= mine.entropy + 1e-4).all()


def test_units_say_what_made_them(
    family: Family, rows: Path, tmp_path: Path, engine: type[LLM]
) -> None:
    cachekd.precompute(_config(family, rows, tmp_path / "cache"))
    (unit,) = (tmp_path / "cache" / "units").glob("*.json")
    numerics = json.loads(unit.read_text())["numerics"]
    assert (numerics["engine"], numerics["version"]) == ("vllm", fake_engine.VERSION)
    assert numerics["devices"] == 1


@pytest.mark.parametrize(
    ("visible", "number", "size", "taken"),
    [
        (None, None, 1, None),  # nobody says which process this is: the engine chooses
        (None, "2", 1, ["2"]),
        (None, "1", 2, ["2", "3"]),
        ("4,5,GPU-6f,7", "2", 1, ["GPU-6f"]),
        ("4,5,GPU-6f,7", "1", 2, ["GPU-6f", "7"]),
        ("5", "3", 1, ["5"]),  # one that Slurm gave to this process alone
        ("4,5,GPU-6f,7", "6", 1, ["GPU-6f"]),  # more processes than GPUs
    ],
)
def test_each_process_of_a_machine_has_an_engine_on_gpus_of_its_own(
    family: Family,
    rows: Path,
    tmp_path: Path,
    engine: type[LLM],
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    number: str | None,
    size: int,
    taken: list[str] | None,
) -> None:
    """As torchrun starts it, whose own store would have the engine's workers wait for ever."""
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "1"}
    launched |= {"TORCHELASTIC_USE_AGENT_STORE": "True"} if number else {}
    given = {**launched, "CUDA_VISIBLE_DEVICES": visible, "LOCAL_RANK": number}
    for name, value in given.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    config = _config(family, rows, tmp_path / "cache", tensor_parallel_size=size)
    facts = find("teachers", "vllm").identify(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    seen = 4 if visible is None else len(visible.split(","))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    find("teachers", "vllm").load(config, facts, 1)
    assert engine.made[0].devices == taken
    assert {name: os.environ.get(name) for name in given} == given


def test_verify_scores_again_with_the_engine_and_with_no_other(
    family: Family, rows: Path, tmp_path: Path, engine: type[LLM], cachekd: Callable[..., Ran]
) -> None:
    from cachekd import precompute

    precompute(_config(family, rows, tmp_path / "cache"))
    again = ("verify", tmp_path / "cache", "--teacher", family.teacher, "--json")
    ran = cachekd(*again, "--backend", "vllm")
    assert ran.code == 0, ran.err
    assert "logprobs" in ran.out and '"entropy"' not in ran.out
    ran = cachekd(*again)
    assert ran.code == 5 and "attn_implementation: 'vllm' / 'sdpa'" in ran.err


def test_units_of_two_backends_do_not_mix(
    family: Family, rows: Path, tmp_path: Path, engine: type[LLM]
) -> None:
    cachekd.precompute(_config(family, rows, tmp_path / "cache", backend="hf"))
    with pytest.raises(MismatchError, match="attn_implementation: 'sdpa' / 'vllm'"):
        cachekd.precompute(_config(family, rows, tmp_path / "cache"))
    assert not engine.made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperatures": (1.0, 2.0)}, "none at 2.0; set --temperatures 1"),
        ({"logits_selection": "sampled"}, "exact heads, not sampled"),
        ({"logits_selection": "top_k+sampled", "logits_top_k": 64}, "exact heads"),
        ({"attention": "maps"}, "attention: backend vllm gives none"),
        ({"adapter": "some/adapter"}, "merge it into the teacher"),
        ({"load_in_4bit": True}, "name a checkpoint that is quantised"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"device_map": "auto"}, "--tensor-parallel-size"),
        ({"attn_implementation": "eager"}, "kernels of its own"),
        ({"tensor_parallel_size": 0}, "expected 1 or more"),
        ({"gpu_memory_utilization": 1.5}, "expected 0 < share <= 1"),
        ({"generate": "sample"}, "scores text and writes none"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_it_starts(
    family: Family,
    rows: Path,
    tmp_path: Path,
    engine: type[LLM],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        cachekd.precompute(_config(family, rows, tmp_path / "cache", **changes))
    assert not engine.made and not (tmp_path / "cache").exists()


def test_without_vllm_the_extra_is_named(
    family: Family, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name)
    )
    with pytest.raises(ConfigError, match=r"pip install 'cachekd\[vllm\]', in an environment of"):
        cachekd.precompute(_config(family, rows, tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_model_that_the_engine_does_not_know(
    family: Family, rows: Path, tmp_path: Path, engine: type[LLM]
) -> None:
    other = shutil.copytree(family.teacher, tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "model_type": "mistral"}))
    with pytest.raises(TeacherError, match=r"vLLM 0\.33\.0: Model architectures .* not supported"):
        cachekd.precompute(_config(family, rows, tmp_path / "cache", teacher=str(other)))
    assert not list(tmp_path.glob("cache/units/*"))


def test_no_room_for_the_model(
    family: Family,
    rows: Path,
    tmp_path: Path,
    engine: type[LLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engine, "__init__", full)
    with pytest.raises(TeacherError, match=r"out of memory: CUDA .* --tensor-parallel-size"):
        cachekd.precompute(_config(family, rows, tmp_path / "cache"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory for one document"),
        (RuntimeError("EngineCore encountered an issue."), "or has ended: EngineCore .* lower"),
    ],
)
def test_an_engine_that_fails_leaves_nothing_of_the_unit(
    family: Family,
    rows: Path,
    tmp_path: Path,
    engine: type[LLM],
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(engine, "fail", fault)
    with pytest.raises(TeacherError, match=message):
        cachekd.precompute(_config(family, rows, tmp_path / "cache"))
    assert not list(tmp_path.glob("cache/units/*"))
    monkeypatch.setattr(engine, "fail", None)
    assert cachekd.precompute(_config(family, rows, tmp_path / "cache"))["sealed"]


def test_a_document_leaves_room_for_the_token_that_is_written(
    family: Family, tmp_path: Path, engine: type[LLM]
) -> None:
    def data(length: int) -> Path:
        return write_rows(tmp_path / f"{length}.jsonl", [{"input_ids": [7] * length}])

    cachekd.precompute(_config(family, data(127), tmp_path / "cache"))
    with pytest.raises(DataError, match="128"):
        cachekd.precompute(_config(family, data(128), tmp_path / "longer"))
    assert len(engine.made) == 1


def test_the_engine_caps_what_is_asked_unless_its_limit_is_raised(
    family: Family, engine: type[LLM]
) -> None:
    ids_L = np.arange(8, dtype=np.int32)
    chosen = Selection(k=30, p=1.0, min_k=1, vocab_size=family.vocab, temperatures=())
    capped = engine(str(family.teacher), skip_tokenizer_init=True, dtype="float32")
    with pytest.raises(TeacherError, match=r"prompt logprobs of 30, .* max allowed: 20"):
        EngineTeacher(capped, 1).score([ids_L], 0, chosen, [None])
    raised = engine(str(family.teacher), skip_tokenizer_init=True, dtype="float32", max_logprobs=-1)
    (found,) = EngineTeacher(raised, 1).score([ids_L], 0, chosen, [None])
    assert (np.diff(found.offsets) == 30).all()


def test_selections_of_live_teachers_are_refused_too() -> None:
    plain = {"k": 4, "p": 1.0, "min_k": 1, "vocab_size": 9}
    with pytest.raises(ConfigError, match=r"no log-normaliser at 2\.0"):
        check_selection(Selection(**plain, temperatures=(2.0,)))
    with pytest.raises(ConfigError, match="exact heads"):
        check_selection(Selection(**plain, temperatures=(), tau=0.1))
    with pytest.raises(ConfigError, match="--support 0"):
        check_selection(Selection(**plain, temperatures=()), [np.ones((3, 2), np.int32)])


def test_rows_that_are_no_number_reach_the_run(
    family: Family, rows: Path, tmp_path: Path, engine: type[LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = LLM._one

    def broken(self: LLM, ids: list[int], count: int) -> Any:
        answer = one(self, ids, count)
        start, end = (
            getattr(answer.prompt_logprobs, n)[3] for n in ("start_indices", "end_indices")
        )
        answer.prompt_logprobs.values[start:end] = [float("nan")] * (end - start)
        return answer

    monkeypatch.setattr(engine, "_one", broken)
    with pytest.raises(CachekdError, match="no distribution"):
        cachekd.precompute(_config(family, rows, tmp_path / "cache"))
    cachekd.precompute(_config(family, rows, tmp_path / "skipped", on_bad_targets="skip"))
    cache = cachekd.open_cache(str(tmp_path / "skipped"))
    assert all(record.skipped is not None and record.skipped[2] for record in cache)


def test_the_fake_knows_no_more_arguments_than_the_real_one() -> None:
    with pytest.raises(TypeError):
        SamplingParams(prompt_logprob=3)  # type: ignore[call-arg]


@pytest.mark.gpu
def test_the_real_engine_gives_the_records_of_transformers(
    family: Family, rows: Path, tmp_path: Path
) -> None:
    pytest.importorskip("vllm")
    for backend in ("hf", "vllm"):
        cachekd.precompute(_config(family, rows, tmp_path / backend, backend=backend))
    expected, found = (cachekd.open_cache(str(tmp_path / name)) for name in ("hf", "vllm"))
    for left in expected:
        right = found.get(left.input_ids)
        assert right is not None
        np.testing.assert_allclose(right.logits.next_logprob, left.logits.next_logprob, atol=5e-3)
        np.testing.assert_allclose(np.exp(right.logits.tail), np.exp(left.logits.tail), atol=5e-3)
