"""A record cut to its first tokens. In: a `Record`. Out: a `Record` with the rows that are left."""

from __future__ import annotations

from dataclasses import replace

from cachekd.training.attention_targets import cut_attention
from cachekd.types import Record, TopKLogits


def truncate(record: Record, length: int) -> Record:
    """The first ``length`` tokens of a record, with their length-1 rows of targets."""
    if len(record.input_ids) <= length:
        return record
    full = record.logits
    end = int(full.offsets[length - 1])
    logits = TopKLogits(
        offsets=full.offsets[:length],
        ids=full.ids[:end],
        logprobs=full.logprobs[:end],
        weights=None if full.weights is None else full.weights[:end],
        tail=full.tail[: length - 1],
        next_logprob=full.next_logprob[: length - 1],
        lognorm={t: values[: length - 1] for t, values in full.lognorm.items()},
        entropy=full.entropy[: length - 1],
        vocab_size=full.vocab_size,
    )
    prompt = None if record.prompt_length is None else min(record.prompt_length, length)
    return replace(
        record,
        input_ids=record.input_ids[:length],
        roles=record.roles[:length],
        prompt_length=prompt,
        logits=logits,
        skipped=None if record.skipped is None else record.skipped[: length - 1],
        attention=cut_attention(record.attention, length - 1) if record.attention else None,
    )
