"""From rows to samples, the whole way."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from cachekd.data.alignment import LossMask, response_rows, trained_rows
from cachekd.data.samples import prepare
from cachekd.errors import ConfigError, DataError
from cachekd.types import Role

WORDS = st.text(st.sampled_from("ab cü\n.4"), max_size=12)
ANSWERS = WORDS.filter(lambda text: bool(text.strip()))
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]


@pytest.fixture
def run(settings, tokenizer, clock):
    """Prepare rows of one file; keyword arguments are settings, but for `using`."""

    def call(*rows, using=tokenizer, context=1000, vocab=None, **values):
        return prepare(
            [("a.jsonl", number, row) for number, row in enumerate(rows)],
            settings(**values),
            using,
            context_length=context,
            vocab_size=len(using) if vocab is None else vocab,
            clock=clock,
        )

    return call


def texts(tokenizer, sample):
    """The text of the prompt and of the response."""
    ids = sample.input_ids.tolist()
    return tokenizer.decode(ids[: sample.prompt_length]), tokenizer.decode(
        ids[sample.prompt_length :]
    )


@examples(deadline=None)  # a busy machine is no fault of a row
@given(prompt=WORDS, completion=ANSWERS, add_eos=st.booleans(), kind=st.integers(0, 2))
def test_prompt_and_completion(
    tokenizer, affix_tokenizer, no_eos_tokenizer, settings, clock, prompt, completion, add_eos, kind
):
    used = (tokenizer, affix_tokenizer, no_eos_tokenizer)[kind]
    rows = [("a", 0, {"text": "a b"}), ("a", 1, {"prompt": prompt, "completion": completion})]
    prepared = prepare(
        rows,
        settings(add_eos=add_eos, on_bad="skip"),
        used,
        context_length=99,
        vocab_size=len(used),
        clock=clock,
    )
    whole, own = (
        used(text, add_special_tokens=False)["input_ids"] for text in (prompt + completion, prompt)
    )
    if whole[: len(own)] != own:
        assert prepared.skipped == {"tokens merge across the border": 1}
        return
    if not prompt and len(whole) == 1 and kind != 1 and not (add_eos and kind == 0):
        assert prepared.skipped == {"fewer than 2 tokens": 1}
        return
    sample = prepared.samples[1]
    eos = "</s>" if kind == 1 or (add_eos and kind == 0) else ""
    bos = "<s>" if kind == 1 else ""
    assert texts(used, sample) == (bos + prompt, completion + eos)
    n = len(sample.input_ids) - sample.prompt_length
    trained = trained_rows(sample.roles, sample.prompt_length, LossMask.AUTO)
    assert np.flatnonzero(trained).tolist() == list(response_rows(sample.prompt_length, n))
    # The first token of the completion is the target of exactly one trained row.
    targets = np.flatnonzero(trained) + 1
    assert np.count_nonzero(targets == sample.prompt_length) == (sample.prompt_length > 0)


def test_a_response_of_one_token(run):
    sample = run({"prompt": "fox:", "completion": "a"}, add_eos=False).samples[0]
    assert len(sample.input_ids) == sample.prompt_length + 1
    assert trained_rows(sample.roles, sample.prompt_length, LossMask.AUTO).sum() == 1


def test_roles_of_text(run):
    completed = run({"prompt": "fox:", "completion": " 42."}).samples[0]
    p = completed.prompt_length
    assert set(completed.roles[:p]) == {Role.USER}
    assert set(completed.roles[p:]) == {Role.ASSISTANT}
    plain = run({"text": "fox"}).samples[0]
    assert set(plain.roles) == {Role.TEXT}
    assert plain.prompt_length is None


def test_eos_is_not_doubled(run, affix_tokenizer):
    ids = run({"text": "fox"}, using=affix_tokenizer).samples[0].input_ids.tolist()
    assert ids.count(affix_tokenizer.eos_token_id) == 1
    assert ids[0] == affix_tokenizer.bos_token_id
    assert run({"text": "fox</s>"}).samples[0].input_ids.tolist().count(1) == 1


def test_alpaca_and_plain_wording(run, tokenizer):
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    with_input = run(row).samples[0]
    assert texts(tokenizer, with_input) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
        "3</s>",
    )
    without = run({**row, "input": ""}).samples[0]
    assert texts(tokenizer, without)[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )
    plain = run(row, prompt_template="plain").samples[0]
    assert texts(tokenizer, plain) == ("Add.\n1 2\n", "3</s>")


def test_history_is_never_lost(run, tokenizer, chat_tokenizer):
    row = {"instruction": "q2", "output": "a2", "history": ["q1", "a1"]}
    alpaca = run(row).samples[0]
    assert texts(tokenizer, alpaca)[0].endswith(
        "### Instruction:\nq1\n\n### Response:\na1\n\n### Instruction:\nq2\n\n### Response:\n"
    )
    plain = run(row, prompt_template="plain").samples[0]
    assert texts(tokenizer, plain)[0] == "q1\na1\nq2\n"
    chat = run(row, using=chat_tokenizer).samples[0]
    assert texts(chat_tokenizer, chat) == (
        "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
        "a2<|im_end|>\n",
    )


@examples(deadline=None)
@given(turns=st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=3))
def test_trained_tokens_of_a_conversation(chat_tokenizer, settings, clock, turns):
    history = [text for turn in turns[:-1] for text in turn]
    row = {"instruction": turns[-1][0], "output": turns[-1][1], "history": history}
    sample = prepare(
        [("a", 0, row)],
        settings(),
        chat_tokenizer,
        context_length=999,
        vocab_size=len(chat_tokenizer),
        clock=clock,
    ).samples[0]

    def trained(mode):
        rows = np.flatnonzero(trained_rows(sample.roles, sample.prompt_length, mode))
        return chat_tokenizer.decode(sample.input_ids[rows + 1].tolist())

    assert trained(LossMask.ASSISTANT) == "".join(a + "<|im_end|>" for _, a in turns)
    assert trained(LossMask.AUTO) == turns[-1][1] + "<|im_end|>"


def test_chat_input_follows_the_instruction(run, chat_tokenizer):
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    prompt, _ = texts(chat_tokenizer, run(row, using=chat_tokenizer).samples[0])
    assert prompt.startswith("<|im_start|>user\nAdd.\n\n1 2<|im_end|>")


def test_template_file_replaces_the_template(run, tokenizer, tmp_path, templates):
    path = tmp_path / "template.jinja"
    path.write_text(templates["simple"])
    sample = run({"messages": CHAT}, chat_template_path=str(path)).samples[0]
    text = tokenizer.decode(sample.input_ids.tolist())
    assert text == "<|user|>Hi<|end|><|assistant|>Hello.<|end|>"
    with pytest.raises(ConfigError, match="chat_template_path"):
        run({"messages": CHAT}, chat_template_path=str(tmp_path / "none"))


def test_named_templates_need_a_default(run, tokenizer, templates):
    def named(chat_template):
        used = copy.deepcopy(tokenizer)
        used.chat_template = chat_template
        return used

    with pytest.raises(ConfigError, match="several chat templates"):
        run({"messages": CHAT}, using=named({"tool_use": "x"}))
    ids = run({"messages": CHAT}, using=named({"default": templates["simple"]})).samples[0]
    assert len(ids.input_ids) > 4


def test_conversations_need_a_template_whatever_on_bad_says(run):
    for values in ({"on_bad": "skip"}, {"prompt_template": "chat"}):
        with pytest.raises(DataError, match="--chat-template-path"):
            run({"messages": CHAT}, **values)


def test_token_ids_are_taken_as_they_are(run):
    sample = run({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}).samples[0]
    assert sample.input_ids.tolist() == [5, 6, 7]
    assert sample.input_ids.dtype == np.int32
    assert sample.roles.tolist() == [Role.USER, Role.ASSISTANT, Role.ASSISTANT]
    assert run({"input_ids": [5, 6]}).samples[0].roles.tolist() == [Role.TEXT] * 2


def test_bad_rows_are_counted_by_reason(run):
    prepared = run(
        {"text": "fox"},
        {"text": ""},
        {"text": " "},
        {"text": 1},
        {"other": 1},
        {"input_ids": [1]},
        {"input_ids": [1, 400]},
        {"input_ids": [1, -1]},
        {"prompt": "The qui", "completion": "ck brown fox"},
        {"text": "dog"},
        on_bad="skip",
        vocab=400,
    )
    assert [sample.row for sample in prepared.samples] == [0, 9]
    assert prepared.skipped == {
        "empty text": 2,
        "wrong type": 1,
        "missing column": 1,
        "fewer than 2 tokens": 1,
        "token id outside the vocabulary": 2,
        "tokens merge across the border": 1,
    }


def test_bad_row_fails_with_its_place(run):
    with pytest.raises(
        DataError, match=r"a\.jsonl row 1: empty text: text is empty.*--on-bad skip"
    ):
        run({"text": "fox"}, {"text": " "})


def test_wrong_file_fails_even_when_bad_rows_are_skipped(run):
    with pytest.raises(DataError, match="--columns"):
        run({"question": "q"}, {"text": "fox"}, on_bad="skip")


def test_domain_weight_and_place(run):
    row = {"text": "fox", "topic": "animals", "w": 2}
    sample = run(row, domain_column="topic", columns={"weight": "w"}).samples[0]
    assert (sample.domain, sample.weight, sample.source, sample.row) == (
        "animals",
        2.0,
        "a.jsonl",
        0,
    )


@pytest.mark.parametrize(("max_length", "context"), [(4, 99), (None, 4), (99, 4)])
def test_the_shorter_limit_counts(run, max_length, context):
    ids = {"input_ids": [1, 2, 3, 4, 5, 6]}
    with pytest.raises(DataError, match="at most 4 tokens, found 6"):
        run(ids, max_length=max_length, context=context)
    prepared = run(ids, max_length=max_length, context=context, on_long="split")
    assert [sample.input_ids.tolist() for sample in prepared.samples] == [[1, 2, 3, 4], [5, 6]]
    assert (prepared.skipped, prepared.changed) == ({}, {"split": 1})


def test_long_rows_are_counted(run):
    rows = [{"input_ids": [1] * 9}, {"input_ids": [1] * 3}, {"input_ids": [1] * 9}]
    assert run(*rows, max_length=4, on_long="skip").skipped == {"too long": 2}
    assert run(*rows, max_length=4, on_long="truncate").changed == {"truncated": 2}


def test_nothing_left_is_an_error_with_counts(run):
    with pytest.raises(DataError, match="2 empty text"):
        run({"text": ""}, {"text": " "}, on_bad="skip")


def test_rows_keep_their_order_over_groups(run):
    prepared = run(*({"text": f"fox {number}"} for number in range(600)))
    assert [sample.row for sample in prepared.samples] == list(range(600))


def test_no_heavy_library_is_imported_before_it_is_needed():
    code = (
        "import sys, pkgutil, importlib, cachekd.data as d\n"
        "names = [m.name for m in pkgutil.iter_modules(d.__path__)]\n"
        "[importlib.import_module('cachekd.data.' + n) for n in names]\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
