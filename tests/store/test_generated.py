"""Files of responses: found again as they were written, and refused when they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cachekd.data.packed import Keys
from cachekd.errors import CorruptCache
from cachekd.store.generated import (
    Response,
    draw_key,
    generated_files,
    load_responses,
    write_responses,
)
from cachekd.store.io import Location
from cachekd.store.tables import RESPONSES, write_table

RECIPE, OTHER = "0" * 32, "1" * 32


def response(prompt: int, number: int, *ids: int) -> Response:
    return Response(prompt=bytes([prompt] * 16), number=number, input_ids=np.array(ids, np.int32))


def draws(*asked: tuple[int, int]) -> Keys:
    return Keys.of(draw_key(bytes([prompt] * 16), number) for prompt, number in asked)


def test_responses_are_found_by_prompt_and_number(tmp_path: Path) -> None:
    location = Location(str(tmp_path))
    write_responses(location, RECIPE, [response(0, 0, 7, 8), response(0, 1, 9)])
    write_responses(location, RECIPE, [response(255, 0, 1, 2, 3)])
    write_responses(location, OTHER, [response(5, 0, 4)])
    assert len(generated_files(location)) == 3
    found = load_responses(location, RECIPE, vocab_size=10, max_new_tokens=3)
    assert len(found) == 3
    places = found.find(draws((0, 1), (255, 0), (5, 0), (0, 0)))
    assert places[2] == -1
    kept = places[[0, 1, 3]]
    assert [found[int(place)].tolist() for place in kept] == [[9], [1, 2, 3], [7, 8]]
    assert found.last_tokens(kept).tolist() == [9, 3, 8]


def test_of_two_answers_that_of_the_first_name_counts(tmp_path: Path) -> None:
    location = Location(str(tmp_path))
    names = {
        write_responses(location, RECIPE, [response(3, 0, token)]): token for token in range(6)
    }
    found = load_responses(location, RECIPE, vocab_size=10, max_new_tokens=1)
    assert found[int(found.find(draws((3, 0)))[0])].tolist() == [names[min(names)]]


@pytest.mark.parametrize(
    "row", [(0, [10]), (0, [-1]), (0, []), (-1, [1]), (0, [1, 2, 3, 4]), (0, None), None]
)
def test_impossible_rows_are_refused(
    tmp_path: Path, row: tuple[int, list[int] | None] | None
) -> None:
    """Under a digest that fits: whoever wrote it was no teacher of this recipe."""
    from cachekd.data.digests import bytes_digest
    from cachekd.store.layout import generated_name

    rows = [] if row is None else [row]
    columns = {
        "prompt": [bytes(16) for _ in rows],
        "number": [number for number, _ in rows],
        "response": [ids for _, ids in rows],
    }
    data = write_table(columns, RESPONSES, {})
    Location(str(tmp_path)).create(generated_name(RECIPE, bytes_digest(data)), data)
    with pytest.raises(CorruptCache, match="no teacher writes; delete"):
        load_responses(Location(str(tmp_path)), RECIPE, vocab_size=10, max_new_tokens=3)
