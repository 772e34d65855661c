"""Who a teacher is and what was captured of it: source id, capture id, and where they differ.

Comes in: settings, and the facts of a model and its tokenizer. Goes out: plain JSON facts and
their digests. No model library is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cachekd.config import LEVEL_STEPS, ModelConfig, SelectionConfig
from cachekd.data import limits, strict
from cachekd.data.attention import AttentionSpec
from cachekd.data.digests import differences, json_id
from cachekd.errors import MismatchError
from cachekd.store.tokenizer import TokenizerFacts
from cachekd.teachers import TeacherFacts

# Configuration keys that say how a checkpoint was saved or is used, not what it computes.
_PROVENANCE_KEYS = frozenset(
    [
        "_name_or_path",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "vocab_size",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "_attn_implementation_autoset",
        "attn_implementation",
        "id2label",
        "label2id",
        "problem_type",
        "task_specific_params",
        "tokenizer_class",
        "is_local",
        "finetuning_task",
    ]
)
_NOT_COMPARED = ("cachekd", "clock")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The ids of a cache and the facts they are digests of.

    ``attention_id`` and ``attention`` are None where only logits are captured.
    """

    source_id: str
    source: Mapping[str, Any]
    capture_id: str
    capture: Mapping[str, Any]
    provenance: Mapping[str, Any]
    attention_id: str | None = None
    attention: Mapping[str, Any] | None = None

    def facts(self) -> dict[str, Any]:
        """All that makes two caches belong together."""
        return {"source": self.source, "capture": self.capture, "attention": self.attention}


def identity_of(
    cache: Mapping[str, Any], capture: Mapping[str, Any], attention: Mapping[str, Any] | None
) -> Identity:
    """The identity that documents of a cache state, whose ids must be those of their facts.

    Raises:
        KeyError: a field is missing.
        TypeError: a field is of another type.
        ValueError: a value is impossible, or an id is that of other facts.
    """
    source, facts = strict.fields(cache["source"]), strict.fields(capture["capture"])
    source_id = _id_of(source, cache["source_id"])
    strict.text(source["dtype"])
    strict.whole(source["vocab_size"], limits.VOCABULARY, 1)
    strict.text(facts["attn_implementation"])
    strict.fields(facts["selection"])
    strict.fields(facts["logprobs"])
    strict.listed(facts["temperatures"], limits.TEMPERATURES, strict.number)
    if facts["rows"] not in ("all", "response"):
        raise ValueError(f"expected rows all or response; found {facts['rows']!r:.80}")
    kept, kept_id = None, None
    if attention is not None:
        AttentionSpec.from_json(attention["capture"])
        kept = strict.fields(attention["capture"])
        kept_id = _id_of({"source_id": source_id, "capture": kept}, attention["capture_id"])
    return Identity(
        source_id=source_id,
        source=source,
        capture_id=_id_of({"source_id": source_id, "capture": facts}, capture["capture_id"]),
        capture=facts,
        provenance=strict.fields(cache["provenance"]),
        attention_id=kept_id,
        attention=kept,
    )


def _id_of(facts: Any, stated: Any) -> str:
    found = json_id(facts)
    if found != stated:
        raise ValueError(f"the facts of id {stated!r:.80} have the id {found}")
    return found


def semantic_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that changes what a model computes."""
    return {key: value for key, value in config.items() if key not in _PROVENANCE_KEYS}


def quantization(config: ModelConfig) -> dict[str, Any] | None:
    """The bitsandbytes settings that change what a teacher computes, or None."""
    if config.load_in_8bit:
        return {"method": "bitsandbytes", "bits": 8}
    if config.load_in_4bit:
        return {
            "method": "bitsandbytes",
            "bits": 4,
            "quant_type": config.bnb_4bit_quant_type,
            "compute_dtype": config.bnb_4bit_compute_dtype,
            "double_quant": config.bnb_4bit_use_double_quant,
        }
    return None


def capture_spec(config: SelectionConfig, attn_implementation: str, vocab: int) -> dict[str, Any]:
    """What is kept of each distribution, as the facts that the capture id is a digest of."""
    return {
        "attn_implementation": attn_implementation,
        "selection": _selection(config, vocab),
        "rows": config.rows,
        "logprobs": _values(config),
        "temperatures": sorted({1.0, *map(float, config.temperatures)}),
    }


def capture_id(source_id: str, capture: Mapping[str, Any]) -> str:
    """Id of a kind of target of one source."""
    return json_id({"source_id": source_id, "capture": capture})


def source_facts(
    config: ModelConfig, facts: TeacherFacts, tokenizer: TokenizerFacts
) -> dict[str, Any]:
    """All that the source id is a digest of."""
    return {
        "weights": facts.weights,
        "config": semantic_config(facts.config),
        "adapter": facts.adapter,
        "code": facts.code,
        "dtype": facts.dtype,
        "quantization": quantization(config),
        "tokenizer": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
    }


def _selection(config: SelectionConfig, vocab: int) -> dict[str, Any]:
    """Only what the kind of selection depends on: two ways to say the same are the same."""
    kind, k = config.logits_selection, min(config.logits_top_k or vocab, vocab)
    if kind == "sampled":
        return {"kind": kind, "samples": config.logits_samples, "seed": config.logits_seed}
    if kind == "top_k+sampled":
        return {"kind": kind, "k": k, "tau": config.logits_tau, "seed": config.logits_seed}
    if kind == "top_p":
        return {"kind": kind, "k": k, "p": config.logits_top_p, "min_k": config.logits_min_k}
    return {"kind": "top_k", "k": vocab if kind == "full" else k}


def _values(config: SelectionConfig) -> dict[str, Any]:
    values = config.logits_values
    if values not in LEVEL_STEPS:
        return {"values": values}
    return {"values": values, "step": config.logits_step or LEVEL_STEPS[values]}


def refuse_difference(door: str, left: Any, right: Any, left_name: str, right_name: str) -> None:
    """Raise if two sets of facts differ.

    Raises:
        MismatchError: names the door, both sides and each field that differs.
    """
    lines = differences(left, right)
    if lines:
        raise MismatchError(
            f"{door}: {left_name} and {right_name} do not belong together. "
            f"They differ in (first / second):\n  " + "\n  ".join(lines)
        )


def warn_of_difference(
    door: str,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    left_name: str,
    right_name: str,
) -> None:
    """Warn of each field in which two provenances differ: where they come from, how text was cut.

    Fields that one side does not state are not compared, nor are versions and clocks.
    """
    stated = [key for key in left if key in right and key not in _NOT_COMPARED]
    for line in differences({k: left[k] for k in stated}, {k: right[k] for k in stated}):
        _log.warning("%s: %s and %s are not made alike: %s", door, left_name, right_name, line)


def said_of_import(identity: Identity) -> str | None:
    """What of an imported cache is asserted, derived or a bound, in sentences; None: it is none."""
    if "asserted" not in identity.source:
        return None
    known = identity.capture["imported"]
    return (
        f"It was imported: its teacher {identity.source['asserted']['teacher']!r} and its "
        f"tokenizer are asserted, not known. Tail mass: {known['tail']}; log-probability of the "
        f"next token: {known['next_logprob']}; entropy: {known['entropy']}."
    )
