"""Responses themselves, to be read: one JSON line for each model, seed and example.

In: runs of a model and the examples. Out: rows of plain JSON types, in the order they were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cachekd.evaluation.examples import Example
from cachekd.evaluation.rouge import rouge_l, sees
from cachekd.evaluation.texts import Run, decoded
from cachekd.evaluation.tokens import Tokens
from cachekd.report.files import write_whole

Row = dict[str, Any]


def written_rows(
    name: str,
    runs: Sequence[Run],
    tokens: Sequence[Tokens],
    examples: Sequence[Example],
    tokenizer: Any,
) -> Iterator[Row]:
    """What a model wrote: the prompt as it read it, response, references, ROUGE-L (0 to 100).

    ROUGE-L is None where it sees no word of the references, which counts 0 in the mean; tokens are
    those of the response without the one that ended it.

    Args:
        name: of the model.
        runs: of each seed (None: greedy).
        tokens: of the examples.
        examples: with their references, and where they are from.
        tokenizer: the model's.
    """
    prompts = [tokenizer.decode(item.prompt.tolist()) for item in tokens]
    references = [item.references for item in examples]
    seen = [any(map(sees, known)) for known in references]
    for run in runs:
        contents = run.contents()
        texts = decoded(contents, tokenizer)
        scores = rouge_l(texts, references).tolist()
        for place, example in enumerate(examples):
            yield {
                "model": name,
                "seed": run.seed,
                "source": example.source,
                "row": example.row,
                "prompt": prompts[place],
                "response": texts[place],
                "references": list(example.references),
                "rouge_l": round(scores[place], 4) if seen[place] else None,
                "tokens": len(contents[place]),
                "ended": run.written[place].ended,
            }


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write JSON lines, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, "".join(lines).encode("utf-8", "replace"))
