"""Responses that the teacher writes: what is stored of them, and what they are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from runs import NEW_TOKENS, ids_of, train, weights, writing_config
from tiny import Family, chat_rows, sentence, write_rows

import cachekd
from cachekd.store.merge import merge
from cachekd.store.verify import verify
from cachekd.teachers import PromptDraw, WritingSpec
from cachekd.teachers.hf import HFTeacher
from cachekd.types import Role


def test_prompts_are_those_of_the_data_and_responses_the_teachers(
    family: Family, data: Path, tmp_path: Path
) -> None:
    """Prompt ids, domain and weight stay; what follows is what the model writes after them."""
    rows = [{**row, "domain": "d", "weight": 0.5} for row in chat_rows(12)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    mapped = {"columns": {"domain": "domain", "weight": "weight"}, "backend": "hf"}
    for name, further in (("gold", {"generate": "none", "max_new_tokens": 256}), ("own", {})):
        mode = {"generate": "greedy", **mapped, **further}
        report = cachekd.precompute(writing_config(family, data, tmp_path / name, **mode))
    gold, own = (cachekd.open_cache(str(tmp_path / name)) for name in ("gold", "own"))
    assert report["generated"] == report["responses_generated"] == len(own) == 12
    assert "generated" not in gold.totals
    assert own.written.all() and not gold.written.any()
    assert own.identity.capture_id == gold.identity.capture_id
    settings = writing_config(family, data, tmp_path, backend="hf")
    teacher = HFTeacher.load(settings, HFTeacher.identify(settings), 1)
    spec = WritingSpec(
        greedy=True,
        max_new_tokens=NEW_TOKENS,
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
    precise = {"backend": "hf", "logits_values": "float32"}
    cachekd.precompute(writing_config(family, data, tmp_path / "own", **precise))
    own = cachekd.open_cache(str(tmp_path / "own"))
    rows = [{"input_ids": record.input_ids.tolist()} for record in own]
    given = write_rows(tmp_path / "given.jsonl", rows)
    plain = {"generate": "none", "max_new_tokens": 256, **precise}
    cachekd.precompute(writing_config(family, given, tmp_path / "given", **plain))
    for theirs, mine in zip(cachekd.open_cache(str(tmp_path / "given")), own, strict=True):
        assert theirs.key == mine.key
        assert np.array_equal(theirs.logits.ids, mine.logits.ids)
        assert np.array_equal(theirs.logits.logprobs, mine.logits.logprobs)


def test_end_tokens_and_unfinished_responses_are_counted(
    family: Family, data: Path, tmp_path: Path
) -> None:
    report = cachekd.precompute(writing_config(family, data, tmp_path / "c", max_new_tokens=60))
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
    cachekd.precompute(writing_config(family, data, tmp_path / "a", generation_samples=3))
    assert len(calls) == len(set(calls)) == 18
    found = ids_of(tmp_path / "a")
    assert len(found) == 21 and found[:3] == found[18:]
    assert len({tuple(ids) for ids in found}) == 18
    other = write_rows(tmp_path / "other.jsonl", rows[::-1])
    settings = {"generation_samples": 3, "batch_tokens": 4096, "sort_window": 2}
    cachekd.precompute(writing_config(family, other, tmp_path / "b", **settings))
    assert sorted(ids_of(tmp_path / "b")) == sorted(found[:18])
    cachekd.precompute(writing_config(family, other, tmp_path / "c", generation_seed=1))
    assert not {tuple(ids) for ids in ids_of(tmp_path / "c")} & {tuple(ids) for ids in found}


def test_a_response_is_cut_where_the_context_ends(family: Family, tmp_path: Path) -> None:
    """truncate: fewer new tokens after a long prompt; what fits is as it would be without."""
    rows = [{"prompt": " ".join(sentence(i) for i in range(n)), "completion": "x"} for n in (1, 6)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    report = cachekd.precompute(writing_config(family, data, tmp_path / "wide", backend="hf"))
    wide = cachekd.open_cache(str(tmp_path / "wide"))
    assert report["changed"] == {}
    limit = int(wide.lengths.max()) - 3
    cut = writing_config(
        family, data, tmp_path / "cut", backend="hf", max_length=limit, on_long="truncate"
    )
    assert cachekd.precompute(cut)["changed"] == {"truncated": 1}
    found = ids_of(tmp_path / "cut")
    assert [len(ids) for ids in found] == [
        min(len(ids), limit) for ids in ids_of(tmp_path / "wide")
    ]
    assert found == [ids[:limit] for ids in ids_of(tmp_path / "wide")]
    skipped = writing_config(family, data, tmp_path / "s", max_length=limit, on_long="skip")
    assert cachekd.precompute(skipped)["skipped"] == {"too long": 1}


def test_chats_are_answered_at_their_last_turn(family: Family, tmp_path: Path) -> None:
    """As the normal path has it up to there: earlier answers keep their roles."""
    turns = [("user", "the cat"), ("assistant", "sings"), ("user", "a dog"), ("assistant", "runs")]
    chat = [{"role": role, "content": text} for role, text in turns]
    data = write_rows(tmp_path / "chat.jsonl", [{"messages": chat}])
    plain = {"generate": "none", "max_new_tokens": 256}
    cachekd.precompute(writing_config(family, data, tmp_path / "gold", **plain))
    cachekd.precompute(writing_config(family, data, tmp_path / "own"))
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
    report = cachekd.precompute(writing_config(family, data, tmp_path / "c", on_bad="skip"))
    assert report["skipped"] == {"no prompt": 3} and report["samples"] == 2


def test_a_union_keeps_what_was_written(
    family: Family, tmp_path: Path, calls: list[tuple[bytes, int]]
) -> None:
    parts = [write_rows(tmp_path / f"{i}.jsonl", chat_rows(4, first=4 * i)) for i in range(2)]
    cachekd.precompute(writing_config(family, parts[0], tmp_path / "own"))
    plain = {"generate": "none", "max_new_tokens": 256}
    cachekd.precompute(writing_config(family, parts[1], tmp_path / "gold", **plain))
    merge([str(tmp_path / "own"), str(tmp_path / "gold")], str(tmp_path / "both"))
    both = cachekd.open_cache(str(tmp_path / "both"))
    assert both.totals["generated"] == 4 and both.written.sum() == 4
    assert not verify(str(tmp_path / "both")).problems
    partial = cachekd.open_cache(str(tmp_path / "both"), partial=True)
    assert np.array_equal(partial.written, both.written)
    cachekd.precompute(writing_config(family, parts[0], tmp_path / "both"))
    assert len(calls) == 4


def test_attention_is_captured_of_what_was_written(
    family: Family, data: Path, tmp_path: Path
) -> None:
    """The budget is settled before anything is written, from the greatest lengths."""
    few = {"max_samples": 4, "backend": "hf", "attention": "auto", "attention_budget": 200}
    cachekd.precompute(writing_config(family, data, tmp_path / "c", **few))
    for record in cachekd.open_cache(str(tmp_path / "c")):
        assert record.attention is not None
        assert record.attention.length == len(record.input_ids) - 1


def test_a_student_learns_from_what_the_teacher_wrote(
    family: Family, data: Path, tmp_path: Path
) -> None:
    cachekd.precompute(writing_config(family, data, tmp_path / "c", backend="hf"))
    out = train(family, (tmp_path / "c",), tmp_path / "out")
    before, after = weights(family.student), weights(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)
