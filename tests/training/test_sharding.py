"""What sharded runs refuse, and whole state put into shards: in one process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import student
from torch.distributed.tensor import DTensor

import cachekd
from cachekd.config import TrainConfig
from cachekd.errors import ConfigError
from cachekd.training import whole
from cachekd.training.arguments import training_arguments
from cachekd.training.gathered import check_gathering, gathered

Make = Callable[..., TrainConfig]


@pytest.mark.parametrize("asked", [True, "true", "full_shard auto_wrap"])
def test_one_process_has_nobody_to_share_with(config: Make, tmp_path: Path, asked: Any) -> None:
    with pytest.raises(ConfigError, match="one process goes on from the checkpoints of several"):
        cachekd.train(config(training={"fsdp": asked}))
    assert not (tmp_path / "out" / "run.json").exists()


def test_fsdp1_is_refused_whoever_asks(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"fsdp": True, "fsdp_config": {"version": 1}}
    with pytest.raises(ConfigError, match="expected version 2; found 1"):
        training_arguments(config(training=first))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        training_arguments(config())


def test_fsdp_that_is_off_is_off(config: Make) -> None:
    for off in (False, "false"):
        assert training_arguments(config(training={"fsdp": off})).fsdp_plugin_args is None


def test_steps_of_another_size_are_refused_on_resuming(config: Make, tmp_path: Path) -> None:
    cachekd.train(config(training={"max_steps": 2, "save_steps": 1}))
    again = {"resume_from_checkpoint": True, "max_steps": 3}
    with pytest.raises(ConfigError, match=r"took 4 rows; now it would take 2"):
        cachekd.train(config(training={**again, "per_device_train_batch_size": 2}))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"] == 2
    same = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert cachekd.train(config(training=again | same))["steps"] == 3
    other = {**again, "max_steps": 4, "per_device_train_batch_size": 2, "ignore_data_skip": True}
    assert cachekd.train(config(training=other))["steps"] == 4


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _trained(model: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _flat(state: Any) -> list[torch.Tensor]:
    return [value for own in state["state"].values() for value in own.values()]


@pytest.mark.parametrize("tied", [False, True])
def test_state_of_a_whole_student_becomes_that_of_shards_and_back(
    group: None, tmp_path: Path, tied: bool
) -> None:
    from torch.distributed.fsdp import fully_shard

    plain = student(0, tie_word_embeddings=tied)
    state = whole.optimizer_state(_trained(plain), keep=True)
    plain.save_pretrained(tmp_path)
    shards = fully_shard(student(1, tie_word_embeddings=tied))
    optimizer = torch.optim.AdamW(shards.parameters(), lr=1e-3)
    whole.load_weights(shards, tmp_path)
    whole.load_optimizer(optimizer, state)
    assert isinstance(optimizer.state_dict()["state"][0]["exp_avg"], DTensor)
    again = whole.optimizer_state(optimizer, keep=True)
    assert not any(isinstance(value, DTensor) for value in _flat(again))
    for left, right in zip(_flat(again), _flat(state), strict=True):
        assert torch.equal(left, right)
    assert whole.optimizer_state(optimizer, keep=False)["state"] == {}
    for name, parameter in plain.named_parameters():
        assert torch.equal(shards.get_parameter(name).full_tensor(), parameter)
    optimizer.step()  # it goes on


def test_gathered_weights_are_whole_and_then_shards_again(group: None) -> None:
    """Whatever ran meanwhile, and however the parts were sharded, as accelerate does it."""
    from torch.distributed.fsdp import fully_shard

    plain, model, ids = student(0), student(0), torch.arange(8)[None]
    assert not plain.config.tie_word_embeddings
    for part in (*model.model.layers, model.model.embed_tokens):
        fully_shard(part, reshard_after_forward=True)
    fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)
    fully_shard(model)
    layer, head = model.model.layers[0].mlp.up_proj, model.lm_head

    def forward() -> tuple[bool, bool]:
        """Which of the two is sharded after a forward."""
        torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
        return tuple(isinstance(part.weight, DTensor) for part in (layer, head))

    assert forward() == (True, False)
    with gathered(model, reshard_after_forward=True):
        assert not any(isinstance(value, DTensor) for value in model.parameters())
        with torch.no_grad():
            assert forward() == (False, False)
    assert all(isinstance(value, DTensor) for value in model.parameters())
    assert forward() == (True, False)
    for one in (plain, model):
        one(input_ids=ids, labels=ids).loss.backward()
    for name, value in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad.full_tensor(), value.grad)


def test_a_torch_that_remembers_what_ran_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.fsdp import FSDPModule

    check_gathering()
    monkeypatch.delattr(FSDPModule, "reset_iter_state")
    with pytest.raises(ConfigError, match=r"expected torch 2.13 or later; found 2\."):
        check_gathering()


def test_weights_of_another_student_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    student(0).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"lm_head.weight is \[56, 16\]; expected \[64, 16\]"):
        whole.load_weights(student(0, padded_vocab=16, tie_word_embeddings=False), tmp_path)
    path = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "norm" not in name}
    os.remove(path)
    save_file(kept, path)
    with pytest.raises(ConfigError, match="lacks 5 weights of the student"):
        whole.load_weights(student(0), tmp_path)
