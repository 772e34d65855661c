"""What a model writes, and how good, how varied and how long it is.

In: a loaded model, tokens of examples, the protocol. Out: a `Run` of responses for each seed, and
figures of them: ROUGE-L, distinct-n, repetition, length. A draw is a function of seed, prompt and
position alone (`cachekd.rollouts.sampling`), so that no batch changes it, and models of one
tokenizer are compared under the same noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachekd.config import EvaluateConfig
from cachekd.data.digests import sample_key
from cachekd.errors import TeacherError
from cachekd.evaluation.figures import Figure, figure, gap
from cachekd.evaluation.models import Found
from cachekd.evaluation.ngrams import gram_counts, seq_rep
from cachekd.evaluation.rouge import rouge_l, sees
from cachekd.evaluation.tokens import Tokens
from cachekd.report.text import counted
from cachekd.rollouts import Ask, Written
from cachekd.rollouts.responses import DrawSpec
from cachekd.rollouts.sampling import write
from cachekd.types import Int32

Progress = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""

DISTINCT = (1, 2, 3, 4)
_REPEATED = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Responses of one seed (None: greedy), in the order of the examples."""

    seed: int | None
    written: tuple[Written, ...]

    def contents(self) -> list[Int32]:
        """Tokens of the responses, without the tokens that ended them."""
        return [text.response[: -1 if text.ended else None] for text in self.written]


def end_tokens(found: Found, tokenizer: Any, tokens: Sequence[Tokens]) -> tuple[int, ...]:
    """Tokens that end a response, ascending.

    Those of the model's generation_config.json (else its config.json), the tokenizer's EOS, and
    the special token that all gold responses end with, which is how a chat template ends a turn.
    """
    taught = {item.end for item in tokens}
    own = {*found.facts.end_tokens, tokenizer.eos_token_id, *(taught if len(taught) == 1 else ())}
    size = found.tokenizer.vocab_size
    return tuple(sorted(token for token in own if token is not None and 0 <= token < size))


def write_runs(
    found: Found,
    model: Any,
    tokens: Sequence[Tokens],
    ends: tuple[int, ...],
    config: EvaluateConfig,
    progress: Progress,
) -> list[Run]:
    """Responses to all prompts, for each seed.

    Raises:
        ConfigError: no token is left to go on with, or the model cannot write.
        TeacherError: the model gave NaN or infinite logits.
        MemoryError: out of memory for a single prompt.
    """
    asks = _asks([item.prompt for item in tokens])
    runs = []
    for seed in [None] if config.greedy else config.seeds:
        stage = f"{found.name}: " + ("greedy" if seed is None else f"seed {seed}")

        def told(done: int, stage: str = stage) -> None:
            progress(stage, done, len(asks))

        told(0)
        try:
            written = write(model, asks, _draw(found, ends, config, seed), told=told)
        except TeacherError as error:
            raise TeacherError(f"{found.who} ({found.path}): {error}") from error
        runs.append(Run(seed=seed, written=tuple(written)))
    return runs


def _draw(
    found: Found, ends: tuple[int, ...], config: EvaluateConfig, seed: int | None
) -> DrawSpec:
    return DrawSpec(
        max_new_tokens=config.max_new_tokens,
        vocab_size=found.tokenizer.vocab_size,
        end_tokens=ends,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        greedy=seed is None,
        seed=seed or 0,
        no_repeat_ngram_size=config.protocol.no_repeat_ngram_size,
        batch_tokens=config.batch_tokens,
    )


def text_figures(
    runs: Sequence[Run],
    tokens: Sequence[Tokens],
    references: Sequence[Sequence[str]],
    tokenizer: Any,
) -> dict[str, Figure]:
    """Figures of what was written.

    Args:
        runs: at least one.
        tokens: of the examples.
        references: of each example.
        tokenizer: the model's.
    """
    contents = [run.contents() for run in runs]
    texts = [decoded(ids, tokenizer) for ids in contents]
    gold = sum(item.length for item in tokens)
    totals = [sum(map(len, ids)) for ids in contents]
    count = len(tokens)
    return {
        "rouge_l": _rouge(texts, references),
        **{f"distinct_{n}": _distinct(contents, n) for n in DISTINCT},
        f"seq_rep_{_REPEATED}": figure(
            [100 * seq_rep(ids, _REPEATED) for ids in contents],
            why=f"no response has {_REPEATED} tokens",
        ),
        "response_tokens": figure([total / count for total in totals]),
        "length_ratio": figure([total / gold for total in totals]),
        "ended": figure([100 * sum(t.ended for t in run.written) / count for run in runs]),
        "empty_responses": figure([float(sum(not text for text in some)) for some in texts]),
    }


def decoded(contents: Sequence[Int32], tokenizer: Any) -> list[str]:
    """Responses as text, without special tokens and without white space around them."""
    found: list[str] = tokenizer.batch_decode(
        [ids.tolist() for ids in contents],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [text.strip() for text in found]


def _rouge(texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Figure:
    """Mean over examples, to four decimals as the papers print it; the library's 0s count."""
    unseen = sum(not any(map(sees, known)) for known in references)
    if unseen == len(references):
        return gap("no reference has a word of a-z or 0-9, and ROUGE-L sees no others")
    means = [float(rouge_l(some, references).mean()) for some in texts]
    return figure(means, digits=4, unseen=[unseen] * len(means))


def _distinct(contents: Sequence[Sequence[Int32]], n: int) -> Figure:
    counts = [gram_counts(ids, n) for ids in contents]
    return figure(
        [100 * different / every if every else float("nan") for different, every in counts],
        why=f"no response has {counted(n, 'token')}",
        distinct=[different for different, _ in counts],
        total=[every for _, every in counts],
    )


def _asks(prompts: Sequence[Int32]) -> list[Ask]:
    """What is asked; a prompt that comes again is another draw."""
    seen: Counter[bytes] = Counter()
    asks = []
    for ids in prompts:
        key = sample_key(ids)
        asks.append(Ask(input_ids=ids, number=seen[key], forced=np.empty(0, np.int32)))
        seen[key] += 1
    return asks
