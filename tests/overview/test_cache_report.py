"""Figures of a cache's page against slow sums over its decoded records."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import capture
from tiny import Family, chat_rows, write_rows

import cachekd
from cachekd.config import RecheckConfig, ReportConfig
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.evaluation.recheck import recheck
from cachekd.evaluation.stored import stored_fidelity
from cachekd.overview.cache import cache_report
from cachekd.overview.cache_page import intro_of
from cachekd.overview.rows import draw
from cachekd.overview.shaded import passages_of
from cachekd.overview.spread import QUANTILES, count_edges, spread_of


def _rows(cache: Path) -> list[dict[str, Any]]:
    """Every captured row, decoded one by one."""
    found = []
    for number, record in enumerate(cachekd.open_cache(str(cache))):
        logits = record.logits
        for t in range(logits.rows):
            count = int(logits.offsets[t + 1] - logits.offsets[t])
            if count:
                found.append(
                    {
                        "sample": number,
                        "domain": record.domain,
                        "entries": count,
                        "tail": math.exp(float(logits.tail[t])),
                        "entropy": float(logits.entropy[t]),
                        "loss": -float(logits.next_logprob[t]),
                    }
                )
    return found


def test_rows_that_no_loss_on_responses_reads_are_told(
    report: dict[str, Any], captured: Path
) -> None:
    cache = cachekd.open_cache(str(captured))
    rows = [trained_rows(r.roles, r.prompt_length, LossMask.COMPLETION) for r in cache]
    share = sum(int(one.sum()) for one in rows) / sum(map(len, rows))
    said = f"Only {share:.0%} of the rows are of responses."
    assert any(said in one and "--rows response" in one for one in intro_of(report))
    part = {**report, "about": {**report["about"], "rows": "response"}}
    whole = {
        **report,
        "sample": {**report["sample"], "rows_of_responses": report["sample"]["rows"]},
    }
    assert not [one for changed in (part, whole) for one in intro_of(changed) if "Only" in one]


def test_passages_name_their_domain_where_there_are_several(report: dict[str, Any]) -> None:
    for domains, named in ((report["domains"], True), ([], False)):
        sections = passages_of({**report, "domains": domains})
        titles = [passage.title for section in sections for passage in section.passages]
        assert titles and all((", domain " in title) == named for title in titles)


def test_spreads_are_those_of_all_rows(report: dict[str, Any], captured: Path) -> None:
    rows = _rows(captured)
    assert report["sample"]["rows"] == len(rows)
    assert report["sample"]["records"] == report["sample"]["of_records"] == 28
    pairs = {
        "mass": [1 - row["tail"] for row in rows],
        "tail": [row["tail"] for row in rows],
        "entries": [row["entries"] for row in rows],
        "entropy": [row["entropy"] for row in rows],
        "next_loss": [row["loss"] for row in rows],
    }
    for name, values in pairs.items():
        found, ordered = report[name], sorted(values)
        assert found["mean"] == pytest.approx(math.fsum(values) / len(values), rel=1e-6), name
        assert (found["least"], found["largest"]) == pytest.approx((ordered[0], ordered[-1]))
        middle = ordered[len(ordered) // 2]
        assert abs(found["quantiles"]["0.5"] - middle) <= 0.02 * (ordered[-1] - ordered[0]) + 1e-9
        assert sum(found["counts"]) == len(values) == found["count"]
        edges = found["edges"]
        for low, high, count in zip(edges[:-1], edges[1:], found["counts"], strict=True):
            if low > edges[0] and high < edges[-1]:
                assert count == sum(low <= value < high for value in values), (name, low)


def test_domains_are_means_over_their_rows(report: dict[str, Any], captured: Path) -> None:
    by_domain = defaultdict(list)
    for row in _rows(captured):
        by_domain[row["domain"]].append(row)
    assert len(by_domain) == 3
    assert {one["domain"] for one in report["domains"]} == set(by_domain)
    for one in report["domains"]:
        rows = by_domain[one["domain"]]
        mean = {
            name: math.fsum(row[name] for row in rows) / len(rows)
            for name in rows[0]
            if name not in ("domain", "sample")
        }
        assert one["rows"] == len(rows)
        assert one["mass"] == pytest.approx(1 - mean["tail"], rel=1e-5)
        for name, ours in (("entropy", "entropy"), ("entries", "entries"), ("loss", "next_loss")):
            assert one[ours] == pytest.approx(mean[name], rel=1e-5)


def test_kl_is_that_of_a_dense_loop(
    report: dict[str, Any], captured: Path, family: Family, tmp_path: Path
) -> None:
    """The dense rows come from a capture of the whole vocabulary, which is another code path."""
    dense = tmp_path / "dense"
    data = captured.parent / "data.jsonl"
    capture(family, data, dense, backend="dummy", logits_selection="full", domain_column="domain")
    cache, whole = cachekd.open_cache(str(captured)), cachekd.open_cache(str(dense))
    drawn = draw(cache, 1000, 0).numbers
    chosen = np.sort(np.random.default_rng(0).choice(drawn, 6, replace=False))
    kls, mass = [], []
    for number in chosen:
        stored = cache[int(number)].logits
        full = whole.get(cache[int(number)].input_ids).logits
        for t in range(stored.rows):
            kl, kept = _kl(stored, full, t)
            kls.append(kl)
            mass.append(kept)
    found = report["kl"]
    assert found["records"] == 6 and found["kl_flat"]["count"] == len(kls)
    assert found["kl_flat"]["mean"] == pytest.approx(math.fsum(kls) / len(kls), rel=1e-4)
    assert found["kl_flat"]["largest"] == pytest.approx(max(kls), rel=1e-4)
    assert found["mass_1"] == pytest.approx(math.fsum(mass) / len(mass), rel=1e-5)


def test_kl_is_what_verify_finds(captured: Path, family: Family) -> None:
    cache = cachekd.open_cache(str(captured))
    config = RecheckConfig(teacher=str(family.teacher), backend="dummy", samples=len(cache))
    found, record_N = stored_fidelity(cache, config, range(len(cache)), lambda *_: None)
    verified = recheck(cache, config)
    assert len(record_N) == len(found["kl_flat"]) == verified["rows_scored"]
    assert found["kl_flat"].mean() == pytest.approx(verified["kl_dense_to_stored"], rel=1e-6)


def _kl(stored: Any, full: Any, t: int) -> tuple[float, float]:
    """KL of dense row t to the stored one, its tail spread evenly; and the mass that it keeps."""
    size = full.vocab_size
    p = [0.0] * size
    for i in range(full.offsets[t], full.offsets[t + 1]):
        p[full.ids[i]] = math.exp(float(full.logprobs[i]))
    total = math.fsum(p)
    head = {
        int(stored.ids[i]): math.exp(float(stored.logprobs[i]))
        for i in range(stored.offsets[t], stored.offsets[t + 1])
    }
    tail = math.exp(float(stored.tail[t]))
    scale = (1 - tail) / math.fsum(head.values())
    outside = size - len(head)
    kl, kept = 0.0, 0.0
    for v in range(size):
        pv = p[v] / total
        qv = head[v] * scale if v in head else tail / outside
        kl += pv * math.log(pv / qv) if pv > 0 else 0.0
        kept += pv if v in head else 0.0
    return kl, kept


def test_bytes_are_those_of_the_files(report: dict[str, Any], captured: Path) -> None:
    sizes = defaultdict(int)
    for path in captured.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            sizes[path.relative_to(captured).parts[0]] += path.stat().st_size
    kinds = report["bytes"]["kinds"]
    assert kinds["samples"] == sizes["samples"] and kinds["index"] == sizes["index"]
    shards = sum(os.path.getsize(path) for path in (captured / "logits").glob("*.parquet"))
    assert kinds["logits"] == shards
    assert report["bytes"]["total"] == sum(sizes.values())
    columns = report["bytes"]["columns"]
    assert sum(columns.values()) == shards, "all shards were drawn"
    stated = defaultdict(int)
    for path in (captured / "logits").glob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                stated[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
    assert {name: columns[name] for name in stated} == dict(stated)


def test_passages_are_the_extreme_windows(report: dict[str, Any], captured: Path) -> None:
    for key, sign in (("least_certain", -1), ("most_certain", 1)):
        means = {}
        for number, record in enumerate(cachekd.open_cache(str(captured))):
            entropy = record.logits.entropy.astype(float)
            width = min(48, len(entropy))
            windows = [entropy[i : i + width].mean() for i in range(len(entropy) - width + 1)]
            means[record.key] = (sign * min(sign * w for w in windows), number)
        ranked = sorted((sign * mean, number) for mean, number in means.values())[:3]
        found = report[key]
        assert [one["mean_entropy"] for one in found] == pytest.approx(
            [sign * mean for mean, _ in ranked], rel=1e-6
        )
        for one in found:
            known = [value for value in one["entropy"] if value is not None]
            assert sum(known) / len(known) == pytest.approx(one["mean_entropy"], rel=1e-5)
            assert len(one["tokens"]) == len(one["input_ids"]) == len(one["entropy"])


def test_a_sample_is_drawn_with_its_seed_and_says_so(captured: Path) -> None:
    def made(seed: int) -> dict[str, Any]:
        return cache_report(ReportConfig(paths=(str(captured),), sample=5, seed=seed))

    first, again, other = made(1), made(1), made(2)
    assert first == again
    assert first["sample"]["records"] == 5 and first["sample"]["of_records"] == 28
    assert first["entropy"]["mean"] != other["entropy"]["mean"]
    assert first["kl"] is None and "--teacher" in first["kl_gap"]


def test_many_shards_are_drawn_from(captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachekd.overview.rows.MOST_SHARDS", 2)
    cache = cachekd.open_cache(str(captured))
    drawn = draw(cache, 1000, 3)
    assert drawn.all_shards > 2 == len(drawn.shards)
    digests, own = cache.shards_of(drawn.numbers.astype(np.int32))
    assert {digests[int(shard)] for shard in own} == set(drawn.shards)
    assert len(set(drawn.numbers.tolist())) == len(drawn.numbers) < len(cache)


@pytest.mark.parametrize("selection", ["sampled", "top_k+sampled"])
def test_draws_have_no_kl_and_say_why(family: Family, tmp_path: Path, selection: str) -> None:
    data = write_rows(tmp_path / "data.jsonl", chat_rows(6))
    further = {"logits_selection": selection, "backend": "dummy", "rows": "response"}
    further |= {"logits_samples": 8} if selection == "sampled" else {"logits_tau": 0.02}
    capture(family, data, tmp_path / "cache", **further)
    teacher = RecheckConfig(teacher=str(family.teacher), backend="dummy")
    found = cache_report(ReportConfig(paths=(str(tmp_path / "cache"),), recheck=teacher))
    assert found["kl"] is None and "draws" in found["kl_gap"]
    assert found["sample"]["rows_without_targets"] > 0, "prompts have no targets here"
    assert selection != "sampled" or found["mass"]["largest"] == 0, "there is no exact head"


def test_a_spread_counts_what_is_beyond_its_edges() -> None:
    found = spread_of(np.array([-1.0, 0.5, 2.0, 9.0]), np.array([0.0, 1.0, 3.0]))
    assert found is not None and found["counts"] == [2, 2]
    assert set(found["quantiles"]) == {f"{q:g}" for q in QUANTILES}
    assert spread_of(np.empty(0), np.array([0.0, 1.0])) is None


@pytest.mark.parametrize("most", [1, 7, 80, 81, 50_000])
def test_every_count_has_a_bin(most: int) -> None:
    edges, log = count_edges(np.arange(1, most + 1))
    assert edges[0] == 0.5 and edges[-1] == most + 0.5 and log == (most > 80)
    assert (np.diff(edges) >= 1).all() and len(edges) <= 81
