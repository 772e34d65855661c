"""Responses that teachers write: greedy as transformers do it, draws as the distribution says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Family, sentence

from cachekd import PrecomputeConfig
from cachekd.errors import TeacherError
from cachekd.teachers import PromptDraw, WritingSpec
from cachekd.teachers._writing import next_tokens, stream_seeds
from cachekd.teachers.dummy import DummyTeacher, dummy_logits
from cachekd.teachers.hf import HFTeacher
from cachekd.types import Int32


def spec_of(family: Family, **changes: object) -> WritingSpec:
    spec = WritingSpec(
        greedy=False,
        max_new_tokens=12,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        end_tokens=(0,),
        vocab_size=family.vocab,
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def prompts_of(family: Family, count: int, number: int = 0) -> list[PromptDraw]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(family.teacher)
    ids = [np.array(tokenizer(sentence(i))["input_ids"], np.int32) for i in range(count)]
    return [PromptDraw(input_ids=ids_L, number=number) for ids_L in ids]


def teacher_of(family: Family) -> HFTeacher:
    config = PrecomputeConfig(teacher=str(family.teacher), data=("x",), cache="", device="cpu")
    return HFTeacher.load(config, HFTeacher.identify(config), 1)


def same(left: list[Int32], right: list[Int32]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(left, right, strict=True))


def test_greedy_is_what_generate_gives_one_by_one(family: Family) -> None:
    """Whatever settings the model brings along: they are not those of greedy decoding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(family.teacher).eval()
    teacher, prompts = teacher_of(family), prompts_of(family, 12)
    teacher._model.generation_config.repetition_penalty = 5.0
    likely = [model(torch.from_numpy(p.input_ids[None]).long()).logits[0, -1] for p in prompts[:3]]
    ends = (0, int(likely[0].argmax()))  # one prompt at least is answered by an end token alone
    written = teacher.write(prompts, spec_of(family, greedy=True, end_tokens=ends))
    assert [len(ids) for ids in written] != [12] * 12 and len(written[0]) == 1
    for prompt, ids in zip(prompts, written, strict=True):
        input_ids = torch.from_numpy(prompt.input_ids[None]).long()
        alone = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=list(ends),
        )
        assert ids.dtype == np.int32
        assert ids.tolist() == alone[0, len(prompt.input_ids) :].tolist()


@pytest.mark.parametrize("kind", ["hf", "dummy"])
def test_draws_do_not_depend_on_the_batch(family: Family, kind: str) -> None:
    teacher = teacher_of(family) if kind == "hf" else DummyTeacher()
    prompts, spec = prompts_of(family, 10), spec_of(family, top_p=0.95, top_k=40, temperature=0.8)
    together = teacher.write(prompts, spec)
    assert same(together, [teacher.write([prompt], spec)[0] for prompt in prompts])
    assert same(together, teacher.write(prompts[::-1], spec)[::-1])
    longer = teacher.write(prompts, replace(spec, max_new_tokens=20))
    assert same(together, [ids[:12] for ids in longer])
    for other in (
        teacher.write(prompts, replace(spec, seed=1)),
        teacher.write(prompts_of(family, 10, number=1), spec),
    ):
        assert not any(np.array_equal(*pair) for pair in zip(together, other, strict=True))


@pytest.mark.parametrize(
    "shape", [{}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.7}, {"temperature": 0.5}]
)
def test_first_tokens_have_the_distribution_of_the_teacher(
    family: Family, shape: dict[str, float]
) -> None:
    """Chi-square over 20 000 draws; the reference is made in float64 from sorted probabilities."""
    draws, prompt = 20_000, np.array([40, 50, 60], np.int32)
    spec = spec_of(family, max_new_tokens=1, **shape)
    asked = [PromptDraw(input_ids=prompt, number=number) for number in range(draws)]
    found = np.concatenate(DummyTeacher().write(asked, spec))
    logits = dummy_logits(prompt, family.vocab)[-1].astype(np.float64) / spec.temperature
    order = np.argsort(-logits, kind="stable")
    p = np.exp(logits[order] - logits.max())
    if spec.top_k:
        p[spec.top_k :] = 0
    p /= p.sum()
    p[np.cumsum(p) - p >= spec.top_p] = 0
    p /= p.sum()
    counts = np.bincount(found, minlength=family.vocab)[order]
    assert counts[p == 0].sum() == 0
    expected, counts = draws * p[p > 0], counts[p > 0]
    common = expected >= 5
    expected = np.append(expected[common], expected[~common].sum())
    counts = np.append(counts[common], counts[~common].sum())
    expected, counts = expected[expected > 0], counts[expected > 0]
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)  # five standard deviations


def test_steps_of_one_response_draw_on_their_own(family: Family) -> None:
    """Equal distributions in two steps: pairs of draws fill the square evenly."""
    prompts = [PromptDraw(input_ids=np.array([7], np.int32), number=n) for n in range(20_000)]
    seeds, spec = stream_seeds(prompts, 3), spec_of(family, vocab_size=8)
    logits = torch.zeros(len(prompts), 8)
    pairs = 8 * next_tokens(logits, seeds, 0, spec) + next_tokens(logits, seeds, 1, spec)
    counts = np.bincount(pairs.numpy(), minlength=64)
    chi2 = ((counts - 20_000 / 64) ** 2 / (20_000 / 64)).sum()
    assert chi2 < 63 + 5 * np.sqrt(2 * 63)


def test_padding_of_the_embedding_is_never_written(family: Family) -> None:
    logits = torch.zeros(4, family.vocab + 8)
    logits[:, family.vocab :] = 100.0
    prompts = prompts_of(family, 4)
    for spec in (spec_of(family), spec_of(family, greedy=True)):
        ids = next_tokens(logits, stream_seeds(prompts, 0), 0, spec)
        assert int(ids.max()) < family.vocab


def test_logits_without_numbers_are_refused(family: Family) -> None:
    logits = torch.full((1, family.vocab), torch.nan)
    with pytest.raises(TeacherError, match="NaN or infinite"):
        next_tokens(logits, torch.zeros(1, dtype=torch.int64), 0, spec_of(family, greedy=True))


def test_an_adapter_writes_too(family: Family, adapter: Path) -> None:
    """With the adapter's weights, not the base model's."""
    config = PrecomputeConfig(
        teacher=str(family.teacher), adapter=str(adapter), data=("x",), cache="", device="cpu"
    )
    tuned = HFTeacher.load(config, HFTeacher.identify(config), 1)
    tuned._model.get_base_model().generation_config.repetition_penalty = 5.0
    prompts, spec = prompts_of(family, 6), spec_of(family, greedy=True)
    written = tuned.write(prompts, spec)
    assert not same(written, teacher_of(family).write(prompts, spec))
    for prompt, ids in zip(prompts, written, strict=True):
        whole = torch.from_numpy(np.concatenate([prompt.input_ids, ids])[None]).long()
        best = tuned._model(input_ids=whole).logits[0].argmax(dim=-1)
        assert ids.tolist() == best[len(prompt.input_ids) - 1 : -1].tolist()


@pytest.mark.gpu
def test_a_device_draws_what_the_processor_draws(family: Family) -> None:
    prompts, spec = prompts_of(family, 16), spec_of(family, top_p=0.9)
    seeds = stream_seeds(prompts, 5)
    logits = 3 * torch.randn(16, family.vocab, generator=torch.Generator().manual_seed(0))
    for step in range(20):
        there = next_tokens(logits.cuda(), seeds.cuda(), step, spec)
        assert torch.equal(there.cpu(), next_tokens(logits, seeds, step, spec))
