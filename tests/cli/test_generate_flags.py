"""``precompute --generate`` and ``inspect`` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiny import Family, Ran

Run = Callable[..., Ran]


def test_a_run_that_writes_and_what_inspect_says(
    cachekd: Run, family: Family, data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("generate: sample\nmax-new-tokens: 6\ngeneration_temperature: 0.5\n")
    flags = ["--config", config, "--teacher", family.teacher, "--data", data, "--backend", "dummy"]
    flags += ["--cache", tmp_path / "cache", "--threads", 1, "--json"]
    dry = cachekd("precompute", *flags, "--dry-run").json
    assert dry["responses_to_generate"] == 30 and dry["tokens_to_generate_at_most"] == 180
    stopped = cachekd("precompute", *flags, "--max-hours", 1e-9)
    assert stopped.code == 3 and "Run the same command again" in stopped.err
    ran = cachekd("precompute", *flags)
    assert ran.code == 0 and ran.json["responses_generated"] == ran.json["generated"] == 30
    assert "responses: " in ran.err and "teacher: " in ran.err
    shown = cachekd("inspect", tmp_path / "cache", "--json").json
    assert shown["generated"] == 30
    assert shown["responses (run 0)"] == {
        "generate": "sample",
        "max_new_tokens": 6,
        "end_tokens": [0],
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "samples": 1,
        "written": 30,
        "unfinished": ran.json["responses_unfinished"],
    }
