"""Caches with attention: capture, read, resume, seal, merge, verify; any damage is noticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import chat_rows

import cachekd
from cachekd.data.alignment import LossMask, trained_rows
from cachekd.errors import CorruptCache, DataError, MismatchError, StoreError
from cachekd.store.attention_shards import AttentionShard
from cachekd.store.io import Location
from cachekd.store.merge import merge
from cachekd.store.seal import seal
from cachekd.store.state import read_state
from cachekd.store.tensors import dump_tensors, load_tensors
from cachekd.store.verify import verify
from cachekd.teachers.dummy import dummy_maps, dummy_queries

Maker = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def made(make_cache: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine samples in several units, with maps. Read only."""
    cache = tmp_path_factory.mktemp("attention") / "cache"
    make_cache(cache, chat_rows(9), attention="maps")
    return cache


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cache"))


def files(cache: Path, folder: str = "attention") -> list[Path]:
    return sorted((cache / folder).glob("*.safetensors"))


def truth(ids: np.ndarray, layer: int) -> np.ndarray:
    width = 16
    return dummy_maps(
        dummy_queries(ids, 2, width, 2 * layer), dummy_queries(ids, 1, width, 2 * layer + 1)
    )


def distance(cache: Path, kl: float = 5e-3) -> None:
    for record in cachekd.open_cache(str(cache)):
        attention = record.attention
        assert attention is not None
        for place, layer in enumerate(attention.layers):
            maps = truth(record.input_ids, int(layer))[:, attention.rows].astype(np.float64)
            read = attention.dense(place).astype(np.float64)
            terms = np.where(
                maps > 0, maps * np.log(np.maximum(maps, 1e-30) / np.maximum(read, 1e-30)), 0
            )
            if len(attention.rows):
                assert terms.sum(-1).mean() < kl


@pytest.mark.parametrize(
    "settings",
    [
        {"attention": "maps"},
        {"attention": "maps", "attention_values": "log"},
        {"attention": "qk"},
        {"attention": "qk", "attention_row_share": 0.3},
        {"attention": "maps", "attention_row_share": 0.05, "attention_keys": 200},
    ],
)
def test_what_is_read_is_near_what_the_teacher_attended_to(
    make_cache: Maker, tmp_path: Path, settings: dict[str, Any]
) -> None:
    report = make_cache(tmp_path / "cache", chat_rows(9), **settings)
    distance(tmp_path / "cache")
    assert verify(str(tmp_path / "cache")).problems == ()
    assert report["attention_shards"] == report["shards"] > 1
    assert 0 < report["attention_bytes"] < report["bytes_at_most"]
    share = settings.get("attention_row_share", 1.0)
    rows = [record.attention for record in cachekd.open_cache(str(tmp_path / "cache"))]
    assert sum(len(item.rows) for item in rows if item) == report["attention_rows"]
    assert all((item.weights == np.float32(1 / share)).all() for item in rows if item)
    if share == 0.05:
        assert any(not len(item.rows) for item in rows if item), "a document without rows is tested"


def test_only_response_rows(make_cache: Maker, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", chat_rows(5), attention="maps", attention_rows="response")
    for record in cachekd.open_cache(str(tmp_path / "cache")):
        assert record.attention is not None
        wanted = trained_rows(record.roles, record.prompt_length, LossMask.AUTO)
        assert record.attention.rows.tolist() == wanted.nonzero()[0].tolist()
        assert 0 < len(record.attention.rows) < record.attention.length
    distance(tmp_path / "cache")


def test_a_cache_of_logits_alone_is_as_it_was(make_cache: Maker, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", chat_rows(3))
    seals = json.loads((tmp_path / "cache/manifest-1.json").read_text())
    assert set(seals["kinds"]) == {"logits"} and "attention_bytes" not in seals["totals"]
    assert "kinds" not in json.loads((tmp_path / "cache/cache.json").read_text())
    for path in (tmp_path / "cache/units").iterdir():
        assert set(json.loads(path.read_text())["shards"]) == {"logits"}
    assert cachekd.open_cache(str(tmp_path / "cache"))[0].attention is None


def test_the_logits_are_those_of_a_cache_without_attention(
    make_cache: Maker, made: Path, tmp_path: Path
) -> None:
    make_cache(tmp_path / "plain", chat_rows(9), attn_implementation="eager")
    assert sorted(p.name for p in (made / "logits").glob("*.parquet")) == sorted(
        p.name for p in (tmp_path / "plain/logits").glob("*.parquet")
    )
    manifests = [
        json.loads((cache / "manifest-1.json").read_text()) for cache in (made, tmp_path / "plain")
    ]
    assert manifests[0]["kinds"]["logits"] == manifests[1]["kinds"]["logits"]
    assert manifests[0]["root"] != manifests[1]["root"], "the root covers both kinds"


def test_a_shard_opens_with_safetensors(made: Path) -> None:
    for path in files(made):
        theirs = load_file(path)
        ours, metadata = load_tensors(path.read_bytes())
        assert metadata["cachekd"] == "attention"
        assert theirs.keys() == ours.keys()
        assert all((theirs[name] == ours[name]).all() for name in theirs)


def test_bytes_depend_on_content_alone(make_cache: Maker, made: Path, tmp_path: Path) -> None:
    make_cache(tmp_path / "again", chat_rows(9), attention="maps")
    assert [path.name for path in files(made)] == [path.name for path in files(tmp_path / "again")]


def test_attention_can_be_left_unread(cache: Path) -> None:
    for path in files(cache):
        path.unlink()
    assert cachekd.open_cache(str(cache), attention=False)[0].attention is None
    with pytest.raises(CorruptCache, match="safetensors is missing"):
        _ = cachekd.open_cache(str(cache))[0]


def test_training_on_logits_decodes_no_attention(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttentionShard, "record", lambda *_: pytest.fail("attention was decoded"))
    dataset = cachekd.CacheDataset(str(made))
    assert len(dataset) == 9 and dataset[0] is not None


def test_other_kinds_than_the_cache_s_are_refused(
    make_cache: Maker, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(MismatchError, match="holds attention with its logits"):
        make_cache(cache, chat_rows(9), attn_implementation="eager")
    with pytest.raises(MismatchError, match=r"attention\.keys: 0 / 4"):
        make_cache(cache, chat_rows(9), attention="maps", attention_keys=4)
    make_cache(tmp_path / "plain", chat_rows(3), attn_implementation="eager")
    with pytest.raises(MismatchError, match="holds logits alone"):
        make_cache(tmp_path / "plain", chat_rows(3), attention="maps")


def test_more_data_adds_only_what_is_new(make_cache: Maker, cache: Path) -> None:
    report = make_cache(cache, chat_rows(12), attention="maps")
    assert report["documents_to_score"] == 3 and report["generation"] == 2
    distance(cache)


def test_a_budget_is_chosen_once(
    make_cache: Maker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    auto = {"attention": "auto", "attention_budget": 60}
    dry = make_cache(tmp_path / "cache", chat_rows(6), dry_run=True, **auto)
    assert "a budget of 60 bytes a token gives" in caplog.text
    done = make_cache(tmp_path / "cache", chat_rows(6), **auto)
    assert done["attention_targets"] == dry["attention_targets"]
    assert done["attention_bytes_per_token_estimated"] <= 60
    # Longer documents alone would give another choice; the cache's stands.
    more = make_cache(tmp_path / "cache", chat_rows(9), **auto)
    assert more["attention_targets"] == done["attention_targets"] and more["generation"] == 2
    assert verify(str(tmp_path / "cache")).problems == ()


def test_a_backend_without_attention_is_refused(
    make_cache: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachekd.errors import TeacherError
    from cachekd.teachers.dummy import DummyTeacher

    monkeypatch.delattr(DummyTeacher, "attention")
    with pytest.raises(TeacherError, match="backend gives no attention"):
        make_cache(tmp_path / "cache", chat_rows(3), attention="maps")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("after", ["capture", "cache", "plan", "logits", "attention", "unit"])
def test_killed_anywhere_the_same_command_continues(
    make_cache: Maker, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """The process dies after a file of this kind was written; what is there is never half."""
    patterns = {
        "capture": "attention/capture.json",
        "cache": "logits/capture.json",
        "plan": "plans/",
        "logits": ".parquet",
        "attention": ".safetensors",
        "unit": "units/",
    }
    create = Location.create

    class Killed(BaseException):
        pass

    def dying(self: Location, name: str, data: bytes) -> bool:
        done = create(self, name, data)
        if patterns[after] in name and not name.startswith("samples"):
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Location, "create", dying)
        with pytest.raises(Killed):
            make_cache(tmp_path / "cache", chat_rows(9), attention="maps")
    if after in ("logits", "attention"):
        assert not read_state(Location(str(tmp_path / "cache"))).units
    make_cache(tmp_path / "cache", chat_rows(9), attention="maps")
    assert verify(str(tmp_path / "cache")).problems == ()
    assert [p.name for p in files(made)] == [p.name for p in files(tmp_path / "cache")]


def test_a_lost_shard_is_made_anew(make_cache: Maker, cache: Path) -> None:
    lost = files(cache)[0]
    lost.unlink()
    assert any("is missing" in problem for problem in verify(str(cache)).problems)
    make_cache(cache, chat_rows(9), attention="maps")
    assert lost.exists() and verify(str(cache)).problems == ()


def test_merge_unites_both_kinds(make_cache: Maker, tmp_path: Path) -> None:
    make_cache(tmp_path / "a", chat_rows(6), attention="maps")
    make_cache(tmp_path / "b", chat_rows(6, first=3), attention="maps")
    sealed = merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "both"))
    assert sealed.attention.keys() == sealed.shards.keys()
    assert verify(str(tmp_path / "both")).problems == ()
    assert len(cachekd.open_cache(str(tmp_path / "both"))) == 9
    distance(tmp_path / "both")
    make_cache(tmp_path / "c", chat_rows(3), attention="qk")
    with pytest.raises(MismatchError, match=r"attention\.kind: 'maps' / 'qk'"):
        merge([str(tmp_path / "a"), str(tmp_path / "c")], str(tmp_path / "other"))
    make_cache(tmp_path / "d", chat_rows(3), attn_implementation="eager")
    with pytest.raises(MismatchError, match="attention: "):
        merge([str(tmp_path / "a"), str(tmp_path / "d")], str(tmp_path / "another"))


def test_one_logits_shard_of_two_runs_is_merged_once(make_cache: Maker, tmp_path: Path) -> None:
    make_cache(tmp_path / "a", chat_rows(3), attention="maps", unit_tokens=10**6)
    make_cache(tmp_path / "b", chat_rows(3), attention="maps", unit_tokens=10**7)
    merged = merge([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "both"))
    assert len(merged.shards) == len(merged.attention) == 1
    assert len(list((tmp_path / "both/units").iterdir())) == 2
    assert verify(str(tmp_path / "both")).problems == ()
    distance(tmp_path / "both")


def roled(start: int) -> list[dict[str, Any]]:
    """The same token ids, of which those from a place on are trained."""
    ids = list(range(10, 22))
    return [{"input_ids": ids, "labels": [-100] * start + ids[start:]}]


def test_attention_of_too_few_rows_is_refused(make_cache: Maker, tmp_path: Path) -> None:
    settings = {"attention": "maps", "attention_rows": "response"}
    make_cache(tmp_path / "few", roled(8), **settings)
    make_cache(tmp_path / "many", roled(4), **settings)
    with pytest.raises(DataError, match="fewer rows"):
        make_cache(tmp_path / "few", roled(4), **settings)
    make_cache(tmp_path / "many", roled(8), **settings)  # what is there is enough
    # One logits shard goes with two of attention, and the lower digest is used: refused where that
    # is the one with fewer rows.
    many, refused = files(tmp_path / "many")[0].stem, set()
    for start in range(5, 11):
        make_cache(tmp_path / f"few{start}", roled(start), **settings)
        caches = [str(tmp_path / f"few{start}"), str(tmp_path / "many")]
        lower = files(Path(caches[0]))[0].stem < many
        refused.add(lower)
        if lower:
            with pytest.raises(
                DataError, match=r"\d samples train on rows whose attention was not"
            ):
                merge(caches, str(tmp_path / f"both{start}"))
        else:
            merge(caches, str(tmp_path / f"both{start}"))
            assert verify(str(tmp_path / f"both{start}")).problems == ()
    assert refused == {True, False}, "both cases are met"


def test_an_unsealed_cache_is_read_as_far_as_it_goes(make_cache: Maker, tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", chat_rows(9), attention="maps", seal=False)
    opened = cachekd.open_cache(str(tmp_path / "cache"), partial=True)
    assert opened[0].attention is not None and opened.totals["attention_bytes"] > 0
    assert verify(str(tmp_path / "cache"), partial=True).problems == ()
    seal(Location(str(tmp_path / "cache")))
    distance(tmp_path / "cache")


def put(path: Path, data: bytes) -> None:
    """Other bytes under this name: a new file, for the old one may still be mapped."""
    new = path.with_name("new")
    new.write_bytes(data)
    os.replace(new, path)


def test_every_flipped_byte_of_a_shard_is_refused(make_cache: Maker, tmp_path: Path) -> None:
    make_cache(
        tmp_path / "cache", chat_rows(1), attention="maps", attention_heads="mean", attention_keys=2
    )
    opened = cachekd.open_cache(str(tmp_path / "cache"))
    assert opened.manifest is not None
    (facts,) = opened.manifest.attention.values()
    location, attention_id = Location(str(tmp_path / "cache")), opened.identity.attention_id
    assert attention_id is not None
    (path,) = files(tmp_path / "cache")
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        put(path, bytes(damaged))
        with pytest.raises(CorruptCache, match=path.name):
            AttentionShard(location, facts, attention_id)
    with pytest.raises(CorruptCache, match=path.name):
        _ = opened[0]
    put(path, whole)
    assert opened[0].attention is not None
    assert verify(str(tmp_path / "cache")).problems == ()


def shard_of(made: Path) -> tuple[AttentionShard, np.ndarray]:
    opened = cachekd.open_cache(str(made))
    assert opened.manifest is not None and opened.identity.attention_id is not None
    facts = next(iter(opened.manifest.attention.values()))
    shard = AttentionShard(Location(str(made)), facts, opened.identity.attention_id)
    ids = {record.key: record.input_ids for record in opened}
    return shard, ids[shard.keys()[0]]


def test_every_flipped_byte_of_a_read_block_is_refused(made: Path) -> None:
    """Also after the shard was opened and its digest checked: memory and disks rot."""
    shard, ids = shard_of(made)
    shard.record(0, ids)
    blocks = np.array(shard._blocks)
    first = int(shard._offsets[len(shard.spec.layers) + 1])
    for place in range(first):
        damaged = blocks.copy()
        damaged[place] ^= 1 << (place % 8)
        shard._blocks = damaged
        with pytest.raises(CorruptCache, match=r"row 0: the checksum of block \d does not fit"):
            shard.record(0, ids)


def test_a_record_of_other_tokens_is_refused(made: Path) -> None:
    shard, ids = shard_of(made)
    with pytest.raises(CorruptCache, match="belongs to other token ids"):
        shard.record(0, ids[:-1])
    if len(shard) > 1:
        with pytest.raises(CorruptCache, match="belongs to other token ids"):
            shard.record(1, ids)


def test_verify_lists_what_is_wrong_with_attention(cache: Path) -> None:
    path = files(cache)[0]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    put(path, bytes(damaged))
    problems = verify(str(cache)).problems
    assert any(path.name in problem and "sha256" in problem for problem in problems)
    capture = cache / "attention/capture.json"
    capture.write_text(capture.read_text().replace('"keys": 0', '"keys": 1'))
    assert any("capture.json" in problem for problem in verify(str(cache)).problems)


@pytest.mark.parametrize("place", ["units", "manifest"])
def test_a_record_that_names_no_attention_is_refused(cache: Path, place: str) -> None:
    from cachekd.store.layout import dump_document

    path = sorted(cache.glob("units/*.json"))[0] if place == "units" else cache / "manifest-1.json"
    content = json.loads(path.read_text())
    kind = content.pop("format").removeprefix("cachekd-")
    for field in ("version", "checksum"):
        content.pop(field)
    if place == "units":
        del content["shards"]["attention"]
    else:
        content["kinds"]["attention"]["shards"].pop()
    put(path, dump_document(kind, content))
    if place == "units":
        with pytest.raises(CorruptCache, match="commits other kinds of target"):
            cachekd.open_cache(str(cache), partial=True)
    else:
        problems = verify(str(cache)).problems
        assert any("the field kinds" in problem for problem in problems)
        with pytest.raises(StoreError, match="no attention shard goes with"):
            list(cachekd.open_cache(str(cache)))


def container(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        (1 << 60).to_bytes(8, "little") + b"{}",
        container(b"not json"),
        container(b"[" * 100_000),
        container([]),
        container({"a": 1}),
        container({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        container({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}}, b"x"),
        container({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"x"),
        container({"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}, b"x"),
        container({"a": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}, b"x"),
        container({"a": {"dtype": "I64", "shape": [1 << 62, 4], "data_offsets": [0, 1]}}, b"x"),
        container({"__metadata__": 3}),
        container({}, b"left over"),
    ],
)
def test_containers_of_strangers(data: bytes) -> None:
    with pytest.raises(CorruptCache):
        load_tensors(data)


def test_a_container_round_trip() -> None:
    arrays = {"a": np.arange(6, dtype="<i4").reshape(2, 3), "b": np.zeros((0, 8), np.uint8)}
    data = dump_tensors(arrays, {"z": "1", "a": "2"})
    found, metadata = load_tensors(data)
    assert metadata == {"z": "1", "a": "2"}
    assert all((found[name] == arrays[name]).all() for name in arrays)
    assert dump_tensors(dict(reversed(arrays.items())), {"a": "2", "z": "1"}) == data
