"""A student that is sharded over processes (FSDP2): set up, saved and continued.

In: the arguments of a Trainer. Out: a Trainer whose checkpoints and students are whole, in the
files that one process would write, unless the user asks for sharded ones (SHARDED_STATE_DICT).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from accelerate.state import DistributedType, PartialState
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers.trainer import FSDP_MODEL_NAME

from cachekd.errors import ConfigError
from cachekd.training import whole

_SHARDS = "SHARDED_STATE_DICT"


def check_sharding(arguments: Any) -> None:
    """Refuse sharding that no part of the run could use, before anything is loaded.

    Args:
        arguments: `transformers.TrainingArguments`; accelerate's environment is read too.

    Raises:
        ConfigError: one process has nobody to share with, or FSDP1 is asked for.
    """
    if not _asked(arguments):
        return
    version = int(os.environ.get("FSDP_VERSION", "1"))
    if arguments.fsdp_plugin_args is not None:
        version = arguments.fsdp_plugin_args["fsdp_version"]
    if version != 2:
        raise ConfigError(
            f"fsdp: expected version 2; found {version}. FSDP1 flattens the student's head, which "
            "losses are fused with: set fsdp_version: 2 (fsdp_config, or accelerate's file)"
        )
    if arguments.parallel_mode != transformers.training_args.ParallelMode.DISTRIBUTED:
        raise ConfigError(
            "fsdp: one process has nobody to share the student with. Start several (torchrun "
            "--nproc-per-node 2 -m cachekd_cli train ...), or leave it out: one process goes on "
            "from the checkpoints of several"
        )


def _asked(arguments: Any) -> bool:
    from_launcher = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return arguments.fsdp_plugin_args is not None or from_launcher


class ShardedTrainer(transformers.Trainer):  # type: ignore[misc]
    """Shards as accelerate does; on CPUs as well, where accelerate would train whole students."""

    optimizer: Any

    def create_accelerator_and_postprocess(self) -> None:
        """Accelerate knows FSDP of devices only, and FSDP2 itself does not mind."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if not _asked(self.args) or state.distributed_type != DistributedType.MULTI_CPU:
            return
        plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
        if self.accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(self.accelerator.mixed_precision)
        state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    @property
    def keeps_shards(self) -> bool:
        """Whether checkpoints are written shard by shard."""
        return self.is_fsdp_enabled and _SHARDS in str(
            self.accelerator.state.fsdp_plugin.state_dict_type
        )

    def save_student(self, folder: Path) -> None:
        """Save the student as a plain ``from_pretrained`` folder; every process must call."""
        if self.keeps_shards:
            self._save(str(folder), state_dict=self.accelerator.get_state_dict(self.model))
        else:
            self.save_model(str(folder), _internal_call=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled or self.keeps_shards:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole.optimizer_state(self.optimizer, keep=self.args.should_save)
        with self._as_one(state):
            super()._save_optimizer_and_scheduler(output_dir)

    @contextmanager
    def _as_one(self, state: Mapping[str, Any]) -> Iterator[None]:
        """Within, transformers reads and writes the optimizer as if one process had all of it."""
        optimizer: Any = self.optimizer
        self.optimizer, self.is_fsdp_enabled = _Whole(optimizer, state), False
        try:
            yield
        finally:
            self.optimizer, self.is_fsdp_enabled = optimizer, True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self._of_shards(folder) or not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            whole.load_weights(self.model if model is None else model, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled or self._of_shards(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with self._as_one({}):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        folder = Path(self.state.best_model_checkpoint)
        if self._of_shards(folder) or not self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            whole.load_weights(self.model, folder)

    def _of_shards(self, folder: Path) -> bool:
        """Whether a checkpoint was written shard by shard.

        Raises:
            ConfigError: it was, and this run would not read it so.
        """
        found = any(path.is_dir() for path in folder.glob(f"{FSDP_MODEL_NAME}*"))
        if found and not self.keeps_shards:
            raise ConfigError(
                f"{folder} was written shard by shard: expected a run that is sharded with "
                f"state_dict_type {_SHARDS} (fsdp_config, or accelerate's file) to go on from it"
            )
        return found


class _Whole:
    """A sharded optimizer whose state is whole to who reads or writes it.

    Args:
        optimizer: the sharded one.
        state: what `cachekd.training.whole.optimizer_state` gave, for who writes it.
    """

    def __init__(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        self._optimizer = optimizer
        self._state = state

    def state_dict(self) -> Mapping[str, Any]:
        """The whole state."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a whole state into the shards."""
        whole.load_optimizer(self._optimizer, state)
