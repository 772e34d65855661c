"""From a real capture to trained weights, through the public functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import STEPS, capture, train, weights
from tiny import Family, chat_rows, write_rows

import cachekd


def live_dense_kd(family: Family, cache: Path) -> dict[str, torch.Tensor]:
    """The same steps with the teacher in memory: dense KL over the vocabulary, plain torch."""
    from transformers import AutoModelForCausalLM

    dataset = cachekd.CacheDataset(str(cache), max_length=128)
    sampler = cachekd.EpochSampler(dataset, seed=7)
    teacher = AutoModelForCausalLM.from_pretrained(family.teacher).eval()
    student = AutoModelForCausalLM.from_pretrained(family.student, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    collate = cachekd.Collator(pad_token_id=1)
    step, epoch = 0, 0
    while step < STEPS:
        sampler.set_epoch(epoch)
        for items in torch.utils.data.DataLoader(
            dataset, batch_size=4, sampler=sampler, collate_fn=collate
        ):
            if step == STEPS:
                break
            inputs = {name: items[name] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                p = teacher(**inputs).logits.flatten(0, 1)[items["rows"]].log_softmax(-1)
            q = student(**inputs).logits.flatten(0, 1)[items["rows"]].log_softmax(-1)
            loss = (p.exp() * (p - q)).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        epoch += 1
    return student.state_dict()


def test_sparse_equals_dense_when_the_head_is_the_vocabulary(
    family: Family, data: Path, tmp_path: Path
) -> None:
    capture(family, data, tmp_path / "cache", logits_top_k=0, logits_top_p=1.0)
    loss = {"loss": {"ce": 0.0, "kd": 1.0}}
    out = train(family, (tmp_path / "cache",), tmp_path / "out", objective_options=loss)
    ours, dense = weights(out), live_dense_kd(family, tmp_path / "cache")
    start = weights(family.student)
    moved = max(float((dense[name] - start[name]).abs().max()) for name in dense)
    apart = max(float((dense[name] - ours[name]).abs().max()) for name in dense)
    assert moved > 1e-2, "training must have done something"
    assert apart < 2e-5


def test_a_shifted_cache_gives_other_weights(
    family: Family, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above has teeth: an off-by-one in the capture makes it fail."""
    from cachekd.teachers import _selection

    whole = _selection.pick

    def shifted(logits_NV, *further):  # type: ignore[no-untyped-def]
        return whole(logits_NV.roll(1, dims=0), *further)

    monkeypatch.setattr(_selection, "pick", shifted)
    with pytest.raises(AssertionError):
        test_sparse_equals_dense_when_the_head_is_the_vocabulary(family, data, tmp_path)


def test_two_halves_train_to_the_weights_of_the_whole(family: Family, tmp_path: Path) -> None:
    rows = chat_rows(30)
    for name, part in (("first", rows[:17]), ("second", rows[12:]), ("whole", rows)):
        capture(family, write_rows(tmp_path / f"{name}.jsonl", part), tmp_path / name)
    halves = (tmp_path / "first", tmp_path / "second")
    from cachekd.store.merge import merge

    merge([str(half) for half in halves], str(tmp_path / "merged"))
    trained = [
        weights(train(family, caches, tmp_path / f"out-{i}"))
        for i, caches in enumerate([(tmp_path / "whole",), halves, (tmp_path / "merged",)])
    ]
    for other in trained[1:]:
        assert all(torch.equal(trained[0][name], other[name]) for name in trained[0])


def test_a_packed_run_trains(family: Family, data: Path, tmp_path: Path) -> None:
    capture(family, data, tmp_path / "cache")
    out = train(family, (tmp_path / "cache",), tmp_path / "out", packing=True)
    assert (out / "run.json").exists()


def test_the_cache_in_a_plain_loop(family: Family, data: Path, tmp_path: Path) -> None:
    """`CacheDataset` and `Collator` without our trainer: a loop that anybody could have."""
    from transformers import AutoModelForCausalLM

    capture(family, data, tmp_path / "cache")
    dataset = cachekd.CacheDataset(str(tmp_path / "cache"))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, shuffle=True, collate_fn=cachekd.Collator(pad_token_id=1)
    )
    student = AutoModelForCausalLM.from_pretrained(family.student, dtype=torch.float32)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    torch.manual_seed(0)
    means = []
    for _ in range(3):
        total, rows = 0.0, 0
        for batch in loader:
            body, head = student.get_decoder(), student.get_output_embeddings()
            output = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            hidden_ND = output.last_hidden_state.flatten(0, 1)[batch["rows"]]
            found = cachekd.sparse_divergence(
                hidden_ND, head.weight, batch["targets"], vocab_size=dataset.vocab_size
            )
            optimizer.zero_grad()
            (found.loss_sum / found.weight_sum).backward()
            optimizer.step()
            total, rows = total + float(found.metrics["kd"]), rows + len(hidden_ND)
        means.append(total / rows)
    assert means[2] < means[0]
