"""Samples that are longer than the limit: refused, cut, split or left out.

In: a `Sample`, the limit in tokens, and the choice ``on_long``. Out: what is left of it, with the
reasons that are counted. A piece of a sample with a response is kept only while it has some of the
response to train on: otherwise its prompt would be trained as if it were plain text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cachekd.data.alignment import LossMask, trained_rows
from cachekd.data.nouns import BadRow
from cachekd.errors import DataError
from cachekd.types import Role, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What is left of a sample, what was left out, and how it was changed."""

    samples: tuple[Sample, ...]
    skipped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def fit(sample: Sample, limit: int, on_long: str) -> Fitted:
    """Bring a sample within the limit.

    Args:
        sample: any sample.
        limit: most tokens, at least 2.
        on_long: fail, truncate, split (into consecutive windows) or skip.

    Returns:
        Samples of 2 to ``limit`` tokens, and reasons to count: a skipped reason for each piece left
        out, a changed reason for the sample.

    Raises:
        DataError: the sample is too long and ``on_long`` is fail.
    """
    length = len(sample.input_ids)
    if length <= limit:
        return Fitted(samples=(sample,))
    if on_long == "skip":
        return Fitted(samples=(), skipped=("too long",))
    if on_long == "fail":
        raise DataError(
            f"{sample.source} row {sample.row}: expected at most {limit} tokens, found {length}. "
            "Raise --max-length if the teacher's context allows it, or choose --on-long truncate, "
            "split or skip"
        )
    if on_long == "truncate":
        return _kept(sample, [_window(sample, 0, limit)], "truncated")
    # The last token alone has no row; it stays the target of no one.
    starts = [start for start in range(0, length, limit) if length - start > 1]
    windows = [_window(sample, start, min(start + limit, length)) for start in starts]
    fitted = _kept(sample, windows, "split")
    if length % limit == 1:
        return replace(fitted, changed=(*fitted.changed, "last window of 1 token dropped"))
    return fitted


def fit_prompt(sample: Sample, limit: int, on_long: str, new_tokens: int) -> Fitted:
    """The prompt of a sample, with room for a response within the limit.

    Args:
        sample: with a prompt and a response.
        limit: most tokens of both.
        on_long: fail, truncate (write fewer tokens) or skip.
        new_tokens: most tokens of the response.

    Raises:
        BadRow: the prompt has no tokens.
        DataError: there is no room and ``on_long`` is fail.
    """
    length = sample.prompt_length
    if not length:
        raise BadRow("no prompt", "expected a prompt of at least one token, found none")
    ids, roles = sample.input_ids[:length].copy(), sample.roles[:length].copy()
    prompt = replace(sample, input_ids=ids, roles=roles)
    if length + new_tokens <= limit:
        return Fitted(samples=(prompt,))
    if on_long == "skip":
        return Fitted(samples=(), skipped=("too long",))
    if on_long == "fail":
        raise DataError(
            f"{sample.source} row {sample.row}: expected at most {limit} tokens, found a prompt of "
            f"{length} and {new_tokens} new ones. Lower --max-new-tokens, raise --max-length if "
            "the teacher's context allows it, or choose --on-long truncate or skip"
        )
    if length >= limit:
        return Fitted(samples=(), skipped=("no response left",))
    return Fitted(samples=(prompt,), changed=("truncated",))


def longest(asked: int | None, context_length: int) -> int:
    """Most tokens of a sample: the teacher's context, or what was asked if that is less."""
    return min(asked or context_length, context_length)


def _kept(sample: Sample, windows: list[Sample], change: str) -> Fitted:
    responds = sample.prompt_length is not None or bool((sample.roles == Role.ASSISTANT).any())
    kept = tuple(window for window in windows if not responds or _has_response(window))
    return Fitted(
        samples=kept,
        skipped=("no response left",) * (len(windows) - len(kept)),
        changed=(change,) if kept else (),
    )


def _has_response(sample: Sample) -> bool:
    return bool(trained_rows(sample.roles, sample.prompt_length, LossMask.COMPLETION).any())


def _window(sample: Sample, start: int, stop: int) -> Sample:
    prompt_length = sample.prompt_length
    if prompt_length is not None:
        prompt_length = min(max(prompt_length - start, 0), stop - start)
    # Copies, so that a short piece does not keep a long document in memory.
    return replace(
        sample,
        input_ids=sample.input_ids[start:stop].copy(),
        roles=sample.roles[start:stop].copy(),
        prompt_length=prompt_length,
    )
