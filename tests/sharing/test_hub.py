"""Push to a dataset repo of the hub, against a faithful fake of the few calls it makes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_hub import FakeHub, refusal
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from tiny import Ran

import cachekd as package
from cachekd.errors import CachekdError, ConfigError, MismatchError, StoreError
from cachekd.store.io import Location
from cachekd.store.layout import dump_document
from cachekd.store.seal import seal
from cachekd.store.verify import verify

from .conftest import Maker, rows_of
from .transfers import HEAD, bytes_of, fetch, send

REPO = "team/news"
URL = f"hf://datasets/{REPO}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake.api)
    return fake


def test_the_repo_is_the_cache(hub: FakeHub, shared: Path, tmp_path: Path) -> None:
    report = send(shared, URL)
    there, mine = bytes_of(hub.folder(REPO, tmp_path / "snapshot")), bytes_of(shared)
    card = there.pop("README.md")
    assert there == {name: data for name, data in mine.items() if name != "README.md"}
    assert card != mine["README.md"]
    assert report["bytes_moved"] > 0 and report["to"] == URL
    assert not verify(str(tmp_path / "snapshot")).problems
    assert package.open_cache(str(tmp_path / "snapshot")).root == report["root"]


def test_before_the_last_commit_there_is_no_cache(
    hub: FakeHub, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachekd.sharing.hub._FILES_A_COMMIT", 3)
    send(shared, URL)
    commits = hub.repos[REPO]
    assert len(commits) > 3
    for files in commits[:-1]:
        assert not {"cache.json", "manifest.json", "manifest-1.json"} & files.keys()
    assert hub.messages[-1].startswith("Seal generation 1")


def test_a_push_that_was_cut_off_goes_on(
    hub: FakeHub, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachekd.sharing.hub._FILES_A_COMMIT", 2)
    real, left = hub.create_commit, [2]

    def cut(*args: object, **named: object) -> None:
        if not left[0]:
            raise ConnectionError("gone")
        left[0] -= 1
        real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(hub, "create_commit", cut)
    with pytest.raises(StoreError, match="run the same command again"):
        send(shared, URL)
    monkeypatch.setattr(hub, "create_commit", real)
    more = send(shared, URL)
    assert more["files_skipped"] == 4
    again = send(shared, URL)
    assert again["files_moved"] == 0


def test_the_card_tells_datasets_and_the_viewer(hub: FakeHub, shared: Path, tmp_path: Path) -> None:
    send(shared, URL, license="apache-2.0")
    text = hub.repos[REPO][-1]["README.md"].decode()
    _, block, body = text.split("---\n", 2)
    told = yaml.safe_load(block)
    assert told["license"] == "apache-2.0" and told["size_categories"] == ["n<1K"]
    assert {one["config_name"] for one in told["configs"]} == {"logits", "samples"}
    cache = package.open_cache(str(shared))
    assert cache.manifest is not None
    records = list(cache)
    size = sum(path.stat().st_size for path in (shared / "logits").glob("*.parquet"))
    tokens = sum(len(record.input_ids) for record in records)
    kept = np.mean(np.concatenate([-np.expm1(record.logits.tail) for record in records]))
    rows = dict(re.findall(r"^\| (\S.*?) \| (.*) \|$", body, re.MULTILINE))
    assert rows["Teacher"] == cache.identity.provenance["teacher"]
    assert rows["Revision"] == "not given" and rows["Licence of the targets"] == "apache-2.0"
    assert rows["Source id"] == cache.manifest.source_id
    assert rows["Capture id"] == cache.manifest.capture_id
    assert rows["Root digest"] == cache.manifest.root
    assert (rows["Samples"], rows["Tokens"]) == ("12", str(tokens))
    assert rows["Bytes per token"] == f"{size / tokens:.1f}"
    assert rows["Bytes per target"] == f"{size / (tokens - 12):.1f}", "the last token has none"
    (measured,) = (value for name, value in rows.items() if name.startswith("Probability kept"))
    assert float(measured) == pytest.approx(kept, abs=1e-4)
    assert f"cachekd train --cache {URL} --student STUDENT" in body


@pytest.mark.slow
def test_datasets_opens_the_folder(hub: FakeHub, shared: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    send(shared, URL)
    folder = hub.folder(REPO, tmp_path / "snapshot")
    for name, columns in (("samples", {"sample_id", "domain"}), ("logits", {"key", "targets"})):
        rows = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "hf"))
        assert len(rows) == 12 and columns <= {*rows.column_names}


def test_more_data_is_a_new_seal(
    hub: FakeHub, shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    send(shared, URL)
    grown = Path(shutil.copytree(shared, tmp_path / "grown"))
    make_cache(grown, rows_of(14), domain_column="domain", sort_window=1)
    send(grown, URL)
    assert len(package.open_cache(str(hub.folder(REPO, tmp_path / "snapshot")))) == 14
    assert not verify(str(tmp_path / "snapshot")).problems
    with pytest.raises(ConfigError, match="cachekd pull"):
        send(shared, URL)


def test_another_identity_is_refused(
    hub: FakeHub, shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    send(shared, URL)
    before = len(hub.repos[REPO])
    make_cache(tmp_path / "other", rows_of(2), logits_top_k=4)
    with pytest.raises(MismatchError, match=r"capture\.selection\.k"):
        send(tmp_path / "other", URL)
    assert len(hub.repos[REPO]) == before


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OfflineModeIsEnabled("off"), StoreError, "HF_HUB_OFFLINE"),
        (LocalTokenNotFoundError("no"), ConfigError, "hf auth login"),
        (refusal(HfHubHTTPError, 403), StoreError, "HF_TOKEN"),
        (refusal(HfHubHTTPError, 500), StoreError, "answered 500"),
        (ConnectionError("no route"), StoreError, "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told(
    hub: FakeHub, shared: Path, error: Exception, kind: type[CachekdError], words: str
) -> None:
    hub.errors.append(error)
    with pytest.raises(kind, match=words):
        send(shared, URL)


def test_a_url_that_names_no_dataset_is_refused(shared: Path, cachekd: Callable[..., Ran]) -> None:
    ran = cachekd("push", shared, "hf://team/news")
    assert ran.code == 2 and "hf://datasets/OWNER/NAME" in ran.err


def test_a_repo_takes_a_cache_without_text(hub: FakeHub, shared: Path, tmp_path: Path) -> None:
    send(shared, URL, keys_only=True)
    theirs = package.open_cache(str(hub.folder(REPO, tmp_path / "snapshot")))
    mine = package.open_cache(str(shared))
    assert theirs.sample_ids == mine.sample_ids and theirs.root != mine.root
    tails = np.concatenate([record.logits.tail for record in mine]).astype(np.float64)
    card = (tmp_path / "snapshot" / "README.md").read_text()
    told = re.search(r"head, mean of 12 records \| ([0-9.]+)", card)
    assert told is not None and abs(float(told[1]) - -np.expm1(tails).mean()) < 1e-4
    assert not verify(str(tmp_path / "snapshot")).problems
    with pytest.raises(MismatchError, match="without the text"):
        send(shared, URL)


def test_text_that_lies_in_a_repo_unsealed_is_refused(
    hub: FakeHub, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as within:
        within.setattr("cachekd.sharing.hub._seal", lambda *_: pytest.fail("cut off"))
        with pytest.raises(pytest.fail.Exception, match="cut off"):
            send(shared, URL)
    commits = len(hub.repos[REPO])
    with pytest.raises(ConfigError, match="takes nothing away"):
        send(shared, URL, keys_only=True)
    assert len(hub.repos[REPO]) == commits


def test_a_second_producer_of_the_same_records_changes_nothing(
    hub: FakeHub, shared: Path, make_cache: Maker, tmp_path: Path
) -> None:
    make_cache(tmp_path / "again", rows_of(12), domain_column="domain", sort_window=1)
    for path in (tmp_path / "again" / "units").iterdir():  # made by another host
        document = json.loads(path.read_bytes())
        own = {key: value for key, value in document.items() if key not in HEAD}
        path.write_bytes(dump_document("unit", {**own, "made": {"host": "another"}}))
    (tmp_path / "again" / "manifest-1.json").unlink()
    assert seal(Location(str(tmp_path / "again"))).root == package.open_cache(str(shared)).root
    send(shared, URL)
    report = send(tmp_path / "again", URL)
    assert report["files_moved"] == 0
    assert not verify(str(hub.folder(REPO, tmp_path / "snapshot"))).problems
    fetch(tmp_path / "snapshot", tmp_path / "back")
