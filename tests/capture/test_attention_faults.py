"""Attention that does not come, or is none: always an error, for a map is no matter of one row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sick import Sickness, share
from tiny import Family

import cachekd
from cachekd import PrecomputeConfig
from cachekd.capture import attention
from cachekd.errors import TeacherError
from cachekd.types import Float32

Arrays = tuple[Float32, ...]
_NO_MASS = ("other mass", "qk")


def config(family: Family, data: Path, cache: Path, **further: Any) -> PrecomputeConfig:
    settings = {"threads": 1, "unit_tokens": 200, "batch_tokens": 100, "writers": 0}
    settings |= {"on_bad_targets": "skip", "attention": "maps"}
    return PrecomputeConfig(
        teacher=str(family.teacher), data=(str(data),), cache=str(cache), **{**settings, **further}
    )


def changed(value: float, place: int) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        first = arrays[0].copy()
        first[0, place, 0] = value
        return (first, *arrays[1:])

    return change


FAULTS: dict[str, tuple[str, Callable[[Arrays], Arrays | None]]] = {
    "nan in the first row": ("is NaN", changed(np.nan, 0)),
    "inf in the last row": ("is NaN", changed(np.inf, -1)),
    "other mass": ("does not sum to 1", changed(3.0, 1)),
    "an empty tuple": ("expected arrays of shape", lambda arrays: ()),
    "a row too few": ("expected arrays", lambda arrays: (arrays[0][:, 1:], *arrays[1:])),
    "a head too few": ("expected arrays", lambda arrays: (arrays[0][1:], *arrays[1:])),
    "nothing": ("gives no attention of layers", lambda arrays: None),
}


def refusal(
    family: Family,
    data: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Arrays], Arrays | None],
    **further: Any,
) -> str:
    """The message of a run whose teacher tells this of its fifth document and layer."""
    told = 0
    own = attention.AttendingTeacher.score

    def score(self: Any, *args: Any) -> Any:
        attend = self._teacher.attention

        def between(spec: Any, rows: Any, sink: Any) -> Any:
            def changing(document: int, place: int, arrays: Arrays) -> None:
                nonlocal told
                told += 1
                found = change(arrays) if told == 5 else arrays
                if found is not None:
                    sink(document, place, found)

            return attend(spec, rows, changing)

        with monkeypatch.context() as patch:
            patch.setattr(self._teacher, "attention", between, raising=False)
            return own(self, *args)

    monkeypatch.setattr(attention.AttendingTeacher, "score", score)
    with pytest.raises(TeacherError) as caught:
        cachekd.precompute(config(family, data, cache, **further))
    assert told >= 5 and not cache.exists()
    return str(caught.value)


@pytest.mark.parametrize("backend", ["dummy", pytest.param("hf", marks=pytest.mark.reliability)])
@pytest.mark.parametrize(
    ("fault", "kind"),
    # Queries have no mass.
    [(fault, kind) for fault in FAULTS for kind in ("maps", "qk") if (fault, kind) != _NO_MASS],
)
def test_attention_that_cannot_be_stored(
    family: Family,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    kind: str,
    backend: str,
) -> None:
    """Before anything is written, whatever the policy for rows of logits says."""
    words, change = FAULTS[fault]
    message = refusal(
        family, data, tmp_path / "c", monkeypatch, change, attention=kind, backend=backend
    )
    assert words in message and "data.jsonl row" in message
    assert "--attention none" in message


def test_rows_of_logits_that_are_let_go_keep_their_attention(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sickness = Sickness(share(2))
    sickness.install(monkeypatch)
    report = cachekd.precompute(config(family, data, tmp_path / "c", backend="dummy"))
    assert report["skipped_rows"] == sickness.made > 5
    for record in cachekd.open_cache(str(tmp_path / "c")):
        assert record.attention is not None
        assert record.attention.rows.tolist() == list(range(len(record.input_ids) - 1))
