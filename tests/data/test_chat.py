"""Role spans of rendered conversations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekd.data.chat import render_chat, renderer, token_roles
from cachekd.data.nouns import BadRow, Chat, Message
from cachekd.errors import ConfigError
from cachekd.types import Role

T, S, U, A = Role.TEMPLATE, Role.SYSTEM, Role.USER, Role.ASSISTANT
WORDS = st.text(st.sampled_from("ab cü\n.4"), max_size=12)
ANSWERS = WORDS.filter(lambda text: bool(text.strip()))
# Drops what earlier answers said, as templates for reasoning models do.
REWRITES = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ '<|assistant|>...<|end|>' }}{% else %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LOSES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NO_SUFFIX = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GLUED = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
)
# The default system text comes with the first message; a lone system message is refused.
NEEDS_USER = (
    "{% if messages[-1]['role'] == 'system' %}{{ raise_exception('no user') }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def chat(*turns, prompt=None):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = tuple(Message(role=roles[role], content=text) for role, text in turns)
    return Chat(messages=messages, prompt_messages=prompt)


def spans(conversation, tokenizer, template, clock):
    """(ids, roles, prompt_length) of a conversation."""
    rendering = render_chat(conversation, renderer(tokenizer, template, clock))
    encode = {
        text: tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in [rendering.text, *rendering.prefixes()]
    }
    ids = encode[rendering.text]
    roles, prompt_length = token_roles(rendering, ids, encode, tokenizer.all_special_ids)
    assert len(roles) == len(ids)
    return ids, roles.tolist(), prompt_length


def pieces(conversation, tokenizer, template, clock):
    """The text of each run of equal roles, with its role."""
    ids, roles, _ = spans(conversation, tokenizer, template, clock)
    found = []
    for index, role in enumerate(roles):
        if found and found[-1][0] == role:
            found[-1][1].append(ids[index])
        else:
            found.append((role, [ids[index]]))
    return [(role, tokenizer.decode(part)) for role, part in found]


def reason(conversation, tokenizer, template, clock):
    with pytest.raises(BadRow) as caught:
        spans(conversation, tokenizer, template, clock)
    return caught.value.reason


def test_chatml(tokenizer, templates, clock):
    turns = chat(("s", "Be brief."), ("u", "Hi"), ("a", "Hello."), ("u", "Bye"), ("a", "Ciao."))
    assert pieces(turns, tokenizer, templates["chatml"], clock) == [
        (S, "<|im_start|>system\nBe brief.<|im_end|>\n"),
        (U, "<|im_start|>user\nHi<|im_end|>\n"),
        (T, "<|im_start|>assistant\n"),
        (A, "Hello.<|im_end|>"),
        (T, "\n"),
        (U, "<|im_start|>user\nBye<|im_end|>\n"),
        (T, "<|im_start|>assistant\n"),
        (A, "Ciao.<|im_end|>"),
        (T, "\n"),
    ]


def test_llama2_gives_system_text_to_the_user_turn_that_holds_it(tokenizer, templates, clock):
    turns = chat(("s", "Be brief."), ("u", "Hi"), ("a", "Hello."), ("u", "Bye"), ("a", "Ciao."))
    assert pieces(turns, tokenizer, templates["llama2"], clock) == [
        (U, "<s>[INST] Be brief.\n\nHi [/INST]"),
        (A, " Hello. </s>"),
        (U, "<s>[INST] Bye [/INST]"),
        (A, " Ciao. </s>"),
    ]


def test_a_prefix_that_is_refused_takes_the_role_of_its_last_message(tokenizer, clock):
    turns = chat(("s", "Be brief."), ("u", "Hi"), ("a", "Hello."))
    assert pieces(turns, tokenizer, NEEDS_USER, clock)[0] == (
        U,
        "<|system|>Be brief.<|end|><|user|>Hi<|end|>",
    )
    # Without an own border the header belongs to the message before it.
    assert pieces(
        chat(("s", "x"), ("a", "y")),
        tokenizer,
        NEEDS_USER.replace(
            "messages[-1]['role'] == 'system'",
            "messages[-1]['role'] == 'system' and not add_generation_prompt",
        ),
        clock,
    ) == [(S, "<|system|>x<|end|><|assistant|>"), (A, "y<|end|>")]


def test_tokens_that_merge_between_messages_take_the_role_of_the_last(tokenizer, clock):
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    turns = chat(("s", "The qui"), ("u", "ck brown fox"), ("a", "jumps"))
    assert pieces(turns, tokenizer, template, clock)[0] == (U, "The quick brown fox")


def test_a_header_that_merges_with_the_message_before_takes_its_role(tokenizer, clock):
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ 'ck<|assistant|>' + m['content'] + '<|end|>' }}{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ck<|assistant|>' }}{% endif %}"
    )
    turns = chat(("u", "The qui"), ("a", "brown fox"))
    assert pieces(turns, tokenizer, template, clock) == [
        (U, "The quick<|assistant|>"),
        (A, "brown fox<|end|>"),
    ]


def test_conversation_may_begin_with_the_assistant_and_end_with_the_user(
    tokenizer, templates, clock
):
    turns = chat(("a", "Hello."), ("a", "Still here."), ("u", "Hi"))
    assert pieces(turns, tokenizer, templates["simple"], clock) == [
        (T, "<|assistant|>"),
        (A, "Hello.<|end|>"),
        (T, "<|assistant|>"),
        (A, "Still here.<|end|>"),
        (U, "<|user|>Hi<|end|>"),
    ]


def test_whitespace_of_an_answer_stays_where_the_template_adds_nothing(tokenizer, clock):
    turns = chat(("u", "Hi"), ("a", "Hello. \n"))
    assert pieces(turns, tokenizer, NO_SUFFIX, clock)[-1] == (A, "Hello. \n")


def test_prompt_ends_with_the_header_of_the_completion(tokenizer, templates, clock):
    turns = chat(("u", "Hi"), ("a", "Hello."), ("u", "Bye"), ("a", "Ciao."), prompt=3)
    ids, roles, prompt_length = spans(turns, tokenizer, templates["chatml"], clock)
    assert tokenizer.decode(ids[:prompt_length]).endswith("Bye<|im_end|>\n<|im_start|>assistant\n")
    assert roles[prompt_length - 1 : prompt_length + 1] == [T, A]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer, clock):
    turns = chat(("u", "Hi"), ("a", "Hello."), ("u", "Bye"), ("a", "Ciao."))
    assert reason(turns, tokenizer, REWRITES, clock) == "template rewrites earlier turns"
    assert pieces(chat(*[("u", "Hi"), ("a", "Yes")]), tokenizer, REWRITES, clock)[-1] == (
        A,
        "Yes<|end|>",
    )


def test_a_header_that_is_not_how_the_turn_begins_is_refused(tokenizer, templates, clock):
    template = templates["simple"].replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>ok:' }}")
    turns = chat(("u", "Hi"), ("a", "Hello."))
    assert reason(turns, tokenizer, template, clock) == "template rewrites earlier turns"


def test_a_lost_answer_is_refused(tokenizer, clock):
    turns = chat(("u", "Hi"), ("a", "Hello."))
    assert reason(turns, tokenizer, LOSES, clock) == "empty assistant span"


def test_a_token_across_the_border_is_refused(tokenizer, clock):
    turns = chat(("u", "The qui"), ("a", "ck brown fox"))
    assert reason(turns, tokenizer, GLUED, clock) == "tokens merge across the border"


def test_a_failing_template_is_a_bad_row(tokenizer, templates, clock):
    turns = chat(("u", "Hi"), ("u", "Hi"))
    assert reason(turns, tokenizer, templates["llama2"], clock) == "template error"


def test_a_template_that_is_not_jinja_is_a_setting_error(tokenizer, clock):
    with pytest.raises(ConfigError, match="not valid Jinja"):
        spans(chat(("u", "Hi")), tokenizer, "{% for %}", clock)


@pytest.mark.parametrize(
    "form", ["%d %b %Y", "%-d/%m/%y", "%H:%M:%S", "%A, %B %d", "100%%d %%", "%F %T", ""]
)
def test_the_clock_stands_still(tokenizer, templates, clock, form):
    template = "\n{{ '[' + strftime_now('" + form + "') + ']' }}" + templates["simple"]
    render = renderer(tokenizer, template, clock)
    text = render((Message(role="user", content="Hi"),), False)
    assert text == "\n[" + clock.strftime(form) + "]<|user|>Hi<|end|>"


@given(
    name=st.sampled_from(["chatml", "simple", "llama2"]),
    turns=st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=4),
)
def test_assistant_tokens_are_the_answers_with_their_end(tokenizer, templates, clock, name, turns):
    conversation = chat(*(turn for u, a in turns for turn in (("u", u), ("a", a))))
    found = pieces(conversation, tokenizer, templates[name], clock)
    expected = {
        "chatml": lambda text: text + "<|im_end|>",
        "simple": lambda text: text.strip() + "<|end|>",
        "llama2": lambda text: " " + text.strip() + " </s>",
    }[name]
    assert [text for role, text in found if role == A] == [expected(a) for _, a in turns]
    whole = renderer(tokenizer, templates[name], clock)(conversation.messages, False)
    assert "".join(text for _, text in found) == whole
