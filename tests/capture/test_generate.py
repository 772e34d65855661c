"""Responses that the teacher writes: what is stored of them, interruptions, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import train, weights
from tiny import Family, chat_rows, sentence, write_rows

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture import Progress, generate
from cachekd.errors import CorruptCache, Incomplete, TeacherError
from cachekd.store.merge import merge
from cachekd.store.verify import verify
from cachekd.teachers import PromptDraw, WritingSpec
from cachekd.teachers.dummy import DummyTeacher
from cachekd.teachers.hf import HFTeacher
from cachekd.types import Int32, Role

NEW = 8


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {
        "threads": 1,
        "batch_tokens": 200,
        "backend": "dummy",
        "generate": "sample",
        "max_new_tokens": NEW,
    }
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def ids_of(cache: Path) -> list[list[int]]:
    return [record.input_ids.tolist() for record in cachekd.open_cache(str(cache))]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int]]:
    """Responses that dummy teachers were asked for, and every batch is committed."""
    asked: list[tuple[bytes, int]] = []
    write = DummyTeacher.write

    def counted(
        self: DummyTeacher, prompts: Sequence[PromptDraw], spec: WritingSpec
    ) -> list[Int32]:
        asked.extend((prompt.input_ids.tobytes(), prompt.number) for prompt in prompts)
        return write(self, prompts, spec)

    monkeypatch.setattr(DummyTeacher, "write", counted)
    monkeypatch.setattr(generate, "COMMIT_SECONDS", 0.0)
    return asked


def test_prompts_are_those_of_the_data_and_responses_the_teachers(
    family: Family, data: Path, tmp_path: Path
) -> None:
    """Prompt ids, domain and weight stay; what follows is what the model writes after them."""
    rows = [{**row, "domain": "d", "weight": 0.5} for row in chat_rows(12)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    mapped = {"columns": {"domain": "domain", "weight": "weight"}, "backend": "hf"}
    for name, further in (("gold", {"generate": "none", "max_new_tokens": 256}), ("own", {})):
        mode = {"generate": "greedy", **mapped, **further}
        report = cachekd.precompute(config(family, data, tmp_path / name, **mode))
    gold, own = (cachekd.open_cache(str(tmp_path / name)) for name in ("gold", "own"))
    assert report["generated"] == report["responses_generated"] == len(own) == 12
    assert "generated" not in gold.totals
    assert own.written.all() and not gold.written.any()
    assert own.identity.capture_id == gold.identity.capture_id
    settings = config(family, data, tmp_path, backend="hf")
    teacher = HFTeacher.load(settings, HFTeacher.identify(settings), 1)
    spec = WritingSpec(
        greedy=True,
        max_new_tokens=NEW,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        end_tokens=(0,),
        vocab_size=family.vocab,
    )
    for theirs, mine in zip(gold, own, strict=True):
        prompt = mine.prompt_length
        assert prompt is not None and prompt == theirs.prompt_length
        assert np.array_equal(mine.input_ids[:prompt], theirs.input_ids[:prompt])
        assert np.array_equal(mine.roles[:prompt], theirs.roles[:prompt])
        assert (mine.roles[prompt:] == Role.ASSISTANT).all()
        assert (mine.domain, mine.weight) == ("d", 0.5)
        alone = teacher.write([PromptDraw(input_ids=mine.input_ids[:prompt], number=0)], spec)
        assert np.array_equal(mine.input_ids[prompt:], alone[0])


def test_targets_are_those_of_the_same_tokens_from_elsewhere(
    family: Family, data: Path, tmp_path: Path
) -> None:
    """The same ids given as data: the same records, found by the same keys."""
    again = {"generate": "none", "max_new_tokens": 256, "backend": "hf", "logits_values": "float32"}
    cachekd.precompute(
        config(
            family,
            data,
            tmp_path / "own",
            **{**again, "generate": "sample"} | {"max_new_tokens": NEW},
        )
    )
    own = cachekd.open_cache(str(tmp_path / "own"))
    rows = [{"input_ids": record.input_ids.tolist()} for record in own]
    given = write_rows(tmp_path / "given.jsonl", rows)
    cachekd.precompute(config(family, given, tmp_path / "given", **again))
    for theirs, mine in zip(cachekd.open_cache(str(tmp_path / "given")), own, strict=True):
        assert theirs.key == mine.key
        assert np.array_equal(theirs.logits.ids, mine.logits.ids)
        assert np.array_equal(theirs.logits.logprobs, mine.logits.logprobs)


def test_end_tokens_and_unfinished_responses_are_counted(
    family: Family, data: Path, tmp_path: Path
) -> None:
    report = cachekd.precompute(config(family, data, tmp_path / "c", max_new_tokens=60))
    own = cachekd.open_cache(str(tmp_path / "c"))
    ended = 0
    for record in own:
        response = record.input_ids[record.prompt_length :].tolist()
        assert 0 not in response[:-1] and 1 <= len(response) <= 60
        assert response[-1] == 0 or len(response) == 60
        ended += response[-1] == 0
    assert 0 < ended < len(own) and report["responses_unfinished"] == len(own) - ended
    assert own.manifest is not None
    assert own.manifest.runs[0]["responses"]["unfinished"] == len(own) - ended


def test_several_samples_of_equal_prompts_and_any_batches(
    family: Family, data: Path, tmp_path: Path, calls: list[tuple[bytes, int]]
) -> None:
    """Rows of one prompt share its responses; batches and the order of rows change none."""
    rows = chat_rows(6)
    data = write_rows(tmp_path / "rows.jsonl", [*rows, {**rows[0], "output": "other"}])
    cachekd.precompute(config(family, data, tmp_path / "a", generation_samples=3))
    assert len(calls) == len(set(calls)) == 18
    found = ids_of(tmp_path / "a")
    assert len(found) == 21 and found[:3] == found[18:]
    assert len({tuple(ids) for ids in found}) == 18
    other = write_rows(tmp_path / "other.jsonl", rows[::-1])
    settings = {"generation_samples": 3, "batch_tokens": 4096, "sort_window": 2}
    cachekd.precompute(config(family, other, tmp_path / "b", **settings))
    assert sorted(ids_of(tmp_path / "b")) == sorted(found[:18])
    cachekd.precompute(config(family, other, tmp_path / "c", generation_seed=1))
    assert not {tuple(ids) for ids in ids_of(tmp_path / "c")} & {tuple(ids) for ids in found}


def test_nothing_is_written_twice(
    family: Family, tmp_path: Path, calls: list[tuple[bytes, int]]
) -> None:
    """Again: nothing. More rows, more samples: what is new. The seal stays what it was."""
    few = write_rows(tmp_path / "few.jsonl", chat_rows(5))
    first = cachekd.precompute(config(family, few, tmp_path / "c"))
    again = cachekd.precompute(config(family, few, tmp_path / "c"))
    assert len(calls) == 5 and again["root"] == first["root"]
    assert again["responses_to_generate"] == 0 and again["generation"] == 1
    more = write_rows(tmp_path / "more.jsonl", chat_rows(8))
    report = cachekd.precompute(config(family, more, tmp_path / "c"))
    assert len(calls) == 8 and report["generated"] == report["samples"] == 8
    cachekd.precompute(config(family, more, tmp_path / "c", generation_samples=2))
    assert len(calls) == len(set(calls)) == 16
    assert ids_of(tmp_path / "c")[:5] == ids_of(tmp_path / "c")[:5]
    assert not verify(str(tmp_path / "c")).problems
    greedy = cachekd.precompute(config(family, more, tmp_path / "c", generate="greedy"))
    assert greedy["responses_generated"] == 8


def test_a_kill_between_two_batches_loses_one_batch_at_most(
    family: Family,
    data: Path,
    tmp_path: Path,
    calls: list[tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is not caught and leaves no time to commit, as a kill."""
    commit, committed = generate.write_responses, []

    def dying(*args: Any) -> str:
        if len(committed) == 3:
            raise KeyboardInterrupt
        committed.append(len(args[2]))
        return commit(*args)

    monkeypatch.setattr(generate, "write_responses", dying)
    with pytest.raises(KeyboardInterrupt):
        cachekd.precompute(config(family, data, tmp_path / "c"))
    asked = len(calls)
    assert 0 < sum(committed) < asked < 30
    dry = cachekd.precompute(config(family, data, tmp_path / "c", dry_run=True))
    assert dry["responses_to_generate"] == 30 - sum(committed) and dry["responses"] == 30
    assert dry["tokens_to_generate_at_most"] == NEW * dry["responses_to_generate"]
    monkeypatch.setattr(generate, "write_responses", commit)
    report = cachekd.precompute(config(family, data, tmp_path / "c"))
    assert len(calls) - asked == report["responses_generated"] == 30 - sum(committed)
    assert report["tokens"] <= dry["tokens"] and report["bytes"] < dry["bytes_at_most"]
    cachekd.precompute(config(family, data, tmp_path / "calm"))
    assert ids_of(tmp_path / "c") == ids_of(tmp_path / "calm")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_in_good_order(
    family: Family,
    data: Path,
    tmp_path: Path,
    calls: list[tuple[bytes, int]],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    """All that is written is committed, though no minute has passed."""
    monkeypatch.setattr(generate, "COMMIT_SECONDS", 1e9)
    steps: list[Progress] = []

    def show(step: Progress) -> None:
        steps.append(step)
        if len(steps) == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Incomplete, match=r"by a signal: \d+ of 30 responses"):
        cachekd.precompute(config(family, data, tmp_path / "c"), progress=show)
    asked = len(calls)
    assert 0 < asked < 30 and [step.stage for step in steps] == ["responses"] * 3
    cachekd.precompute(config(family, data, tmp_path / "c"), progress=show)
    assert len(calls) == len(set(calls)) == 30
    written = [step for step in steps[3:] if step.stage == "responses"]
    assert written[-1].tokens_done == written[-1].tokens_total
    assert steps[-1].stage == "teacher"


def test_max_hours_before_the_first_response(family: Family, data: Path, tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="before --max-hours 1e-09: 0 of 30 responses"):
        cachekd.precompute(config(family, data, tmp_path / "c", max_hours=1e-9))
    assert not (tmp_path / "c").exists()


def test_memory_that_is_short_splits_a_batch(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cachekd.precompute(config(family, data, tmp_path / "calm"))
    write = DummyTeacher.write

    def small(self: DummyTeacher, prompts: Any, spec: WritingSpec) -> list[Int32]:
        if len(prompts) > most:
            raise MemoryError("injected")
        return write(self, prompts, spec)

    monkeypatch.setattr(DummyTeacher, "write", small)
    most = 1
    cachekd.precompute(config(family, data, tmp_path / "tight"))
    assert ids_of(tmp_path / "tight") == ids_of(tmp_path / "calm")
    most = 0
    with pytest.raises(TeacherError, match=r"data.jsonl row \d+: .*injected"):
        cachekd.precompute(config(family, data, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_response_is_cut_where_the_context_ends(family: Family, tmp_path: Path) -> None:
    """truncate: fewer new tokens after a long prompt; what fits is as it would be without."""
    rows = [{"prompt": " ".join(sentence(i) for i in range(n)), "completion": "x"} for n in (1, 6)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    report = cachekd.precompute(config(family, data, tmp_path / "wide", backend="hf"))
    wide = cachekd.open_cache(str(tmp_path / "wide"))
    assert report["changed"] == {}
    limit = int(wide.lengths.max()) - 3
    cut = config(family, data, tmp_path / "cut", backend="hf", max_length=limit, on_long="truncate")
    assert cachekd.precompute(cut)["changed"] == {"truncated": 1}
    found = ids_of(tmp_path / "cut")
    assert [len(ids) for ids in found] == [
        min(len(ids), limit) for ids in ids_of(tmp_path / "wide")
    ]
    assert found == [ids[:limit] for ids in ids_of(tmp_path / "wide")]
    skipped = config(family, data, tmp_path / "s", max_length=limit, on_long="skip")
    assert cachekd.precompute(skipped)["skipped"] == {"too long": 1}


def test_chats_are_answered_at_their_last_turn(family: Family, tmp_path: Path) -> None:
    """As the normal path has it up to there: earlier answers keep their roles."""
    turns = [("user", "the cat"), ("assistant", "sings"), ("user", "a dog"), ("assistant", "runs")]
    chat = [{"role": role, "content": text} for role, text in turns]
    data = write_rows(tmp_path / "chat.jsonl", [{"messages": chat}])
    plain = {"generate": "none", "max_new_tokens": 256}
    cachekd.precompute(config(family, data, tmp_path / "gold", **plain))
    cachekd.precompute(config(family, data, tmp_path / "own"))
    (gold,), (own,) = (cachekd.open_cache(str(tmp_path / name)) for name in ("gold", "own"))
    last = np.flatnonzero(gold.roles == Role.ASSISTANT)
    prompt = int(last[np.flatnonzero(np.diff(last) > 1)[-1] + 1])
    assert own.prompt_length == prompt
    assert np.array_equal(own.input_ids[:prompt], gold.input_ids[:prompt])
    assert np.array_equal(own.roles[:prompt], gold.roles[:prompt])
    assert (own.roles[:prompt] == Role.ASSISTANT).any()


def test_rows_without_a_prompt_may_be_skipped(family: Family, tmp_path: Path) -> None:
    user = {"messages": [{"role": "user", "content": "the cat"}]}
    rows = [*chat_rows(2), {"text": sentence(1)}, {"input_ids": [4, 5, 6]}, user]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    report = cachekd.precompute(config(family, data, tmp_path / "c", on_bad="skip"))
    assert report["skipped"] == {"no prompt": 3} and report["samples"] == 2


def test_an_altered_file_of_responses_is_refused(
    family: Family, data: Path, tmp_path: Path, calls: list[tuple[bytes, int]]
) -> None:
    cachekd.precompute(config(family, data, tmp_path / "c"))
    victim = next((tmp_path / "c" / "generated").glob("*.parquet"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CorruptCache, match=f"delete .*{victim.name}"):
        cachekd.precompute(config(family, data, tmp_path / "c"))
    victim.unlink()
    report = cachekd.precompute(config(family, data, tmp_path / "c"))
    assert report["responses_generated"] == len(calls) - 30 > 0
    assert report["documents_to_score"] == 0


def test_a_union_keeps_what_was_written(
    family: Family, tmp_path: Path, calls: list[tuple[bytes, int]]
) -> None:
    parts = [write_rows(tmp_path / f"{i}.jsonl", chat_rows(4, first=4 * i)) for i in range(2)]
    cachekd.precompute(config(family, parts[0], tmp_path / "own"))
    plain = {"generate": "none", "max_new_tokens": 256}
    cachekd.precompute(config(family, parts[1], tmp_path / "gold", **plain))
    merge([str(tmp_path / "own"), str(tmp_path / "gold")], str(tmp_path / "both"))
    both = cachekd.open_cache(str(tmp_path / "both"))
    assert both.totals["generated"] == 4 and both.written.sum() == 4
    assert not verify(str(tmp_path / "both")).problems
    partial = cachekd.open_cache(str(tmp_path / "both"), partial=True)
    assert np.array_equal(partial.written, both.written)
    cachekd.precompute(config(family, parts[0], tmp_path / "both"))
    assert len(calls) == 4


def test_attention_is_captured_of_what_was_written(
    family: Family, data: Path, tmp_path: Path
) -> None:
    """The budget is settled before anything is written, from the greatest lengths."""
    few = {"max_samples": 4, "backend": "hf", "attention": "auto", "attention_budget": 200}
    cachekd.precompute(config(family, data, tmp_path / "c", **few))
    for record in cachekd.open_cache(str(tmp_path / "c")):
        assert record.attention is not None
        assert record.attention.length == len(record.input_ids) - 1


def test_a_student_learns_from_what_the_teacher_wrote(
    family: Family, data: Path, tmp_path: Path
) -> None:
    cachekd.precompute(config(family, data, tmp_path / "c", backend="hf"))
    out = train(family, (tmp_path / "c",), tmp_path / "out")
    before, after = weights(family.student), weights(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.reliability
def test_kill_9_of_a_real_process(family: Family, tmp_path: Path) -> None:
    """Killed while it writes; the same command ends with what a quiet run has."""
    data = write_rows(tmp_path / "data.jsonl", chat_rows(400))
    settings = "from cachekd.capture import generate; generate.COMMIT_SECONDS = 0.0\n"
    main = "import sys; from cachekd_cli.main import main; sys.exit(main())"
    common = ["--teacher", family.teacher, "--data", data, "--threads", "1", "--generate", "sample"]
    common += ["--max-new-tokens", NEW, "--batch-tokens", "100", "--on-long", "skip"]
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", settings + main, "precompute", "--cache", cache, *common]
    process = subprocess.Popen([str(part) for part in command])
    deadline = time.monotonic() + 120
    while len(list((cache / "generated").glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    there = len(list((cache / "generated").glob("*.parquet")))
    assert there >= 3 and not (cache / "plans").exists()
    further = {"backend": "hf", "on_long": "skip", "batch_tokens": 100}
    report = cachekd.precompute(config(family, data, cache, **further))
    assert 0 < report["responses_generated"] < report["responses"]
    cachekd.precompute(config(family, data, tmp_path / "calm", **further))
    assert ids_of(cache) == ids_of(tmp_path / "calm")
