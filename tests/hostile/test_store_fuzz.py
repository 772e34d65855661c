"""Any bytes, and whole files with any changes: a parser gives a value or an error of cachekd.

What was found so is kept in ``corpus/``, a folder a target, and tried first. The script
``benchmarks/fuzz_parsers.py`` runs for longer, with atheris where that is installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzed import survives, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TARGETS = targets()
CORPUS = Path(__file__).parent / "corpus"
WORDS = [
    b"null", b"true", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'"x"', b"9" * 20, b"..", b"\xff" * 8,
    b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\x80", b",", b'"', b"[" * 99, b"PAR1",
]  # fmt: skip
edit = st.tuples(
    st.integers(0, 1 << 16),  # where
    st.integers(0, 24),  # how much goes
    st.binary(max_size=8) | st.sampled_from(WORDS),  # what comes
)


def changed(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes after some changes; half of them keep the length."""
    for place, gone, new in edits:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + (len(new) if gone % 2 else gone) :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_whole_files_are_read(name: str) -> None:
    """Else the changes of the tests below would be changes of nothing."""
    for seed in TARGETS[name].seeds:
        assert survives(TARGETS[name], seed), name


def check(name: str, examples: int) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.binary(max_size=200)
        | st.builds(changed, st.sampled_from(target.seeds), st.lists(edit, min_size=1, max_size=4))
    )
    def run(data: bytes) -> None:
        assert survives(target, data) in (True, False)

    run()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_refused_or_read(name: str) -> None:
    check(name, 60)


@pytest.mark.reliability
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TARGETS)
def test_files_changed_in_many_ways(name: str) -> None:
    check(name, 1500)


def test_what_was_found_stays_found() -> None:
    tried = 0
    for folder in sorted(path for path in CORPUS.iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir()):
            assert survives(TARGETS[folder.name], path.read_bytes()) in (True, False), path
            tried += 1
    assert tried >= 3
