"""Makes the cache of the present format version that later versions must go on reading.

    PYTHONPATH=tests python tests/store/format/make_fixture.py

It is written to ``cache-<version>`` beside this file, with ``cache-<version>.json``: what a reader
must find in it. Files of a version that is out are never made again.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from tiny import save_model, save_tokenizer

import cachekd
from cachekd import PrecomputeConfig
from cachekd.store.layout import VERSION

FOLDER = Path(__file__).parent
ROWS = [
    {"prompt": "the red cat", "completion": " sings", "domain": "a"},
    {"prompt": "a dog", "completion": " runs", "domain": "b"},
    {"text": "stone"},
]


def found_in(cache: cachekd.Cache) -> list[dict[str, Any]]:
    """Everything of every record, as plain values; floats by their bits."""
    return [
        {
            "key": record.key.hex(),
            "sample_id": record.sample_id.hex(),
            "input_ids": record.input_ids.tolist(),
            "roles": record.roles.tolist(),
            "prompt_length": record.prompt_length,
            "domain": record.domain,
            "weight": record.weight,
            "offsets": record.logits.offsets.tolist(),
            "ids": record.logits.ids.tolist(),
            **{
                name: getattr(record.logits, name).astype("<f4").tobytes().hex()
                for name in ("tail", "next_logprob", "entropy")
            },
            "lognorm": {
                str(t): norm.astype("<f4").tobytes().hex()
                for t, norm in record.logits.lognorm.items()
            },
            "logprobs": [round(float(value), 4) for value in record.logits.logprobs],
        }
        for record in cache
    ]


def main() -> None:
    """Make the files, if they are not there."""
    cache, facts = FOLDER / f"cache-{VERSION}", FOLDER / f"cache-{VERSION}.json"
    if cache.exists():
        sys.exit(f"{cache} is there; a version that is out is never made again")
    platform.node = lambda: "host"
    with tempfile.TemporaryDirectory() as name:
        teacher, data = Path(name) / "teacher", Path(name) / "data.jsonl"
        save_model(teacher, save_tokenizer(teacher), width=32, layers=1, seed=1)
        for rows in (ROWS[:2], ROWS[2:]):
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            cachekd.precompute(
                PrecomputeConfig(
                    teacher=str(teacher),
                    backend="dummy",
                    data=(str(data),),
                    cache=str(cache),
                    domain_column="domain" if "domain" in rows[0] else None,
                    logits_top_k=4,
                    threads=1,
                )
            )
    opened = cachekd.open_cache(str(cache))
    facts.write_text(
        json.dumps({"root": opened.root, "records": found_in(opened)}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
