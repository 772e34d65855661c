"""Whose targets imported ones are: what the user says, marked as said and not known.

Comes in: settings, the tokenizer, and what is known of the values. Goes out: an `Identity`. Its
source holds ``asserted``, which no captured source has, so that an asserted identity equals no
known one; its capture holds ``imported``: what of a row is stored, derived, a bound, or not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachekd import __version__
from cachekd.capture.identify import public_name
from cachekd.config import ImportConfig
from cachekd.data.digests import json_id
from cachekd.exchange import Reading
from cachekd.exchange._rows import Law
from cachekd.store.identity import Identity, capture_id
from cachekd.store.tokenizer import TokenizerFacts


def asserted_identity(
    config: ImportConfig, tokenizer: TokenizerFacts, reading: Reading, law: Law, rows: str
) -> Identity:
    """Identity of an import.

    Args:
        config: who the teacher is said to be, and how values are stored.
        tokenizer: of the token ids, as said.
        reading: what the format stores.
        law: what values are, and whether next tokens are told.
        rows: all or response.
    """
    source = {
        "asserted": {"teacher": public_name(config.teacher), "revision": config.revision},
        "weights": None,
        "config": {},
        "adapter": None,
        "code": None,
        "dtype": config.dtype,
        "quantization": None,
        "tokenizer": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
    }
    source_id = json_id(source)
    capture = _capture(config, reading, law, rows)
    return Identity(
        source_id=source_id,
        source=source,
        capture_id=capture_id(source_id, capture),
        capture=capture,
        provenance={
            "teacher": public_name(config.teacher),
            "revision": config.revision,
            "tokenizer": public_name(config.tokenizer),
            "import": dict(reading.notes),
            "cachekd": __version__,
        },
    )


def _capture(config: ImportConfig, reading: Reading, law: Law, rows: str) -> dict[str, Any]:
    """How the targets were made, as far as that is known."""
    norms = (name.partition(":")[2] for name in reading.scalars if name.startswith("lognorm:"))
    return {
        "attn_implementation": "unknown",
        "selection": {"kind": "imported", "format": config.format},
        "rows": rows,
        "logprobs": {"values": config.logits_values},
        "temperatures": sorted({1.0, *map(float, norms)}),
        "imported": _known(reading, law),
    }


def _known(reading: Reading, law: Law) -> Mapping[str, Any]:
    """What is known of each row beside its entries."""
    tail = "derived" if law.values == "logprobs" else "unknown (renormalised)"
    return {
        "tail": "stored" if "tail" in reading.scalars else tail,
        "next_logprob": "stored" if law.next_known else "bound where it is no entry",
        "entropy": "stored" if "entropy" in reading.scalars else "lower bound",
    }
