"""Bad input to ``cachekd train`` and to readers: refused before a weight is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import Family, Ran, chat_rows, save_model, save_tokenizer, write_rows

Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def made(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache that tests copy before they damage it."""
    import cachekd
    from cachekd import PrecomputeConfig

    root = tmp_path_factory.mktemp("made")
    data = write_rows(root / "data.jsonl", chat_rows(12))
    cachekd.precompute(
        PrecomputeConfig(
            teacher=str(family.teacher),
            data=(str(data),),
            cache=str(root / "cache"),
            unit_tokens=150,
            batch_tokens=100,
        )
    )
    return root / "cache"


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cache"))


@pytest.fixture
def refused(
    cachekd: Run, family: Family, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs train, expects a refusal with this exit code, nothing loaded, nothing written."""

    def run(*further: object, code: int, loads: bool = False, **replaced: object) -> str:
        from cachekd.training import student as training

        if not loads:
            monkeypatch.setattr(training, "load_student", lambda *a: pytest.fail("loaded"))
        options = {"cache": cache, "student": family.student, "output-dir": tmp_path / "out"}
        options |= replaced
        flags = [part for name, value in options.items() for part in (f"--{name}", value)]
        ran = cachekd("train", *flags, "--max-steps", 2, "--use-cpu", "true", *further)
        assert ran.code == code, ran.err
        assert not (tmp_path / "out").exists() or loads
        assert "Traceback" not in ran.err
        return ran.err

    return run


def test_student_with_another_tokenizer(refused: Callable[..., str], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    other = tmp_path / "other"
    vocab = save_tokenizer(other)
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_tokens(["zebra"])
    tokenizer.save(str(other / "tokenizer.json"))
    save_model(other, vocab + 1, width=16, layers=1, seed=3)
    message = refused(student=other, code=5)
    assert "tokenizer" in message and str(vocab) in message and str(vocab + 1) in message


def test_student_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such model" in refused(student=tmp_path / "nobody", code=1)


def test_no_cache_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no cache at" in refused(cache=tmp_path / "nothing", code=1)


def test_caches_of_two_teachers(
    refused: Callable[..., str],
    cachekd: Run,
    cache: Path,
    family: Family,
    data: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other-cache"
    flags = ("--teacher", family.student, "--data", data, "--cache", other)
    assert cachekd("precompute", *flags).code == 0
    message = refused("--cache", other, code=5)
    assert "weights" in message and str(cache) in message and str(other) in message
    merged = cachekd("merge", cache, other, "--out", tmp_path / "both")
    assert merged.code == 5 and "source.weights" in merged.err
    assert not (tmp_path / "both").exists()


def test_cache_of_another_teacher_for_evaluation(
    refused: Callable[..., str], cachekd: Run, family: Family, data: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other-cache"
    flags = ("--teacher", family.student, "--data", data, "--cache", other)
    assert cachekd("precompute", *flags).code == 0
    assert "weights" in refused("--eval-cache", other, code=5)


def test_unsealed_cache(refused: Callable[..., str], cachekd: Run, cache: Path) -> None:
    for seal in cache.glob("manifest*"):
        seal.unlink()
    assert "--partial" in refused(code=1)
    assert cachekd("inspect", cache).code == 1
    assert cachekd("inspect", cache, "--partial").code == 0


def test_partial_cache_trains_as_far_as_it_goes(
    cachekd: Run, cache: Path, family: Family, tmp_path: Path
) -> None:
    whole = cachekd("inspect", cache, "--json").json["samples"]
    for path in [*cache.glob("manifest*"), sorted((cache / "units").iterdir())[0]]:
        path.unlink()
    flags = ["--cache", cache, "--student", family.student, "--output-dir", tmp_path / "out"]
    flags += ["--max-steps", 2, "--use-cpu", "true", "--partial", "--json"]
    ran = cachekd("train", *flags)
    assert ran.code == 0, ran.err
    assert 0 < ran.json["counts"]["samples"] < whole


def test_deleted_shard(refused: Callable[..., str], cachekd: Run, cache: Path) -> None:
    victim = sorted((cache / "logits").glob("*.parquet"))[0]
    victim.unlink()
    checked = cachekd("verify", cache)
    assert checked.code == 4 and victim.name in checked.err and "missing" in checked.err
    message = refused(code=4, loads=True)
    assert victim.name in message and "missing" in message


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9, 0.999])
def test_flipped_byte_in_a_shard(
    refused: Callable[..., str], cachekd: Run, cache: Path, place: float
) -> None:
    for victim in (cache / "logits").glob("*.parquet"):
        data = bytearray(victim.read_bytes())
        data[int(len(data) * place)] ^= 0x10
        victim.write_bytes(data)
    checked = cachekd("verify", cache)
    assert checked.code == 4 and victim.name in checked.err and "sha256" in checked.err
    message = refused(code=4, loads=True)
    assert "expected sha256" in message


def test_unknown_yaml_keys(refused: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("packin: true\n")
    assert "Did you mean 'packing'?" in refused("--config", config, code=2)
    config.write_text("training: {learning_rat: 1.0e-3}\n")
    assert "Did you mean 'learning_rate'?" in refused("--config", config, code=2)
    config.write_text("loss: {kl: 1.0}\n")
    assert "kl" in refused("--config", config, code=2)


def test_unknown_objective_and_flag(refused: Callable[..., str]) -> None:
    assert "Did you mean 'kd'?" in refused("--objective", "kdd", code=2)
    assert "Did you mean 'learning_rate'?" in refused("--learning-rat", 1, code=2)
    assert "Did you mean 'beta'?" in refused("--objective", "jsd", "--betta", 0.3, code=2)
    assert "an option of the objectives dkd, gkd, jsd, symmetric" in refused("--beta", 0.3, code=2)


def test_temperature_that_was_not_captured(refused: Callable[..., str]) -> None:
    message = refused("--temperature", 3, code=2)
    assert "captured with 1, 2" in message and "--temperatures 3" in message


def test_longer_than_the_students_context(refused: Callable[..., str]) -> None:
    assert "at most 128" in refused("--max-length", 500, code=2)


def test_a_run_is_not_written_over(
    cachekd: Run, cache: Path, family: Family, tmp_path: Path
) -> None:
    flags = ["--cache", cache, "--student", family.student, "--output-dir", tmp_path / "out"]
    flags += ["--max-steps", 2, "--use-cpu", "true"]
    assert cachekd("train", *flags).code == 0
    before = (tmp_path / "out" / "run.json").read_bytes()
    again = cachekd("train", *flags)
    assert again.code == 2 and "holds another run" in again.err
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_names_in_a_seal_cannot_lead_outside(cachekd: Run, cache: Path) -> None:
    """A manifest with a valid checksum and a hostile name."""
    from cachekd.store.layout import dump_document, load_document

    path = cache / "manifest-1.json"
    document = load_document("manifest", path.name, path.read_bytes())
    document["samples"] = ["../../../../etc/passwd"]
    content = {k: v for k, v in document.items() if k not in ("format", "version", "checksum")}
    path.write_bytes(dump_document("manifest", content))
    ran = cachekd("inspect", cache)
    assert ran.code == 4 and "expected a sha256 of 64 hex digits" in ran.err


@pytest.mark.parametrize("name", ["cache.json", "logits/capture.json", "manifest-1.json"])
def test_documents_that_are_cut_or_changed(cachekd: Run, cache: Path, name: str) -> None:
    whole = (cache / name).read_bytes()
    changed = json.loads(whole)
    changed["source_id"] = "0" * 32
    for data in (whole[: len(whole) // 2], b"", b"[]", json.dumps(changed).encode()):
        (cache / name).write_bytes(data)
        assert cachekd("inspect", cache).code == 4
