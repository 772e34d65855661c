"""A vLLM engine in this process: prompts of token ids in, targets out.

Comes in: a folder that vLLM loads. Goes out: targets with what log-probabilities of prompts can
tell: exact heads at temperature 1, a tail that is 1 - sum, an entropy that is a lower bound (see
`cachekd.teachers._vllm_rows`). The engine forms its own batches, so shapes are its own too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import PrecomputeConfig, ScoringConfig, check_vllm
from cachekd.errors import ConfigError, TeacherError
from cachekd.teachers import Selection, TeacherFacts
from cachekd.teachers._launched import engine_environment
from cachekd.teachers._memory import one_memory_error
from cachekd.teachers._vllm_flat import flat_targets
from cachekd.types import Int32, TopKLogits

INEXACT = {"entropy": "lower bound", "tail": "1 - sum of the head, at least 2^-24"}
"""Columns that log-probability lists cannot give as they are elsewhere."""
_SEQUENCES = 256
_ADVICE = (
    "lower --batch-tokens or --gpu-memory-utilization (what it leaves is for the log-probabilities "
    "of whole rows), or spread the teacher with --tensor-parallel-size"
)


def identify(config: PrecomputeConfig | ScoringConfig) -> TeacherFacts:
    """The teacher of a folder, as `cachekd.teachers.hf` finds it: the engine loads the same files.

    Raises:
        ConfigError: vLLM is not installed, or is asked for what it cannot do.
    """
    from cachekd.teachers.hf import HFTeacher

    check_vllm(config)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "backend vllm: vLLM is not installed; run: pip install 'cachekd[vllm]', in an "
            "environment of its own: it brings other versions of transformers, numpy and torch"
        )
    facts = HFTeacher.identify(config)
    # One token must be left to write: the engine knows no request without it.
    return replace(facts, context_length=facts.context_length - 1, inexact=INEXACT)


def load(config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts) -> EngineTeacher:
    """Start the engine; of several processes of a machine each has GPUs of its own.

    Raises:
        TeacherError: it does not know the model, or has no room for it.
    """
    try:
        with one_memory_error(), engine_environment(config.tensor_parallel_size):
            engine = _started(config, facts)
    except MemoryError as error:
        raise TeacherError(
            f"teacher {config.teacher} cannot be loaded by vLLM: out of memory: {error}. Nothing "
            "was written. Use a smaller --dtype, or --tensor-parallel-size"
        ) from error
    except Exception as error:  # the engine and code of models have errors of their own
        raise TeacherError(
            f"teacher {config.teacher} cannot be loaded by vLLM {_version()}: {error}. "
            "Nothing was written. Check that this vLLM knows its architecture, or use --backend hf"
        ) from error
    return EngineTeacher(engine, config.tensor_parallel_size)


def _started(config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts) -> Any:
    """The engine, with the arguments that its answers need."""
    import vllm

    tokens = config.batch_tokens if isinstance(config, PrecomputeConfig) else 4096
    return vllm.LLM(
        model=str(facts.folder),
        skip_tokenizer_init=True,
        trust_remote_code=config.trust_remote_code,
        dtype=facts.dtype,
        tensor_parallel_size=config.tensor_parallel_size,
        gpu_memory_utilization=config.gpu_memory_utilization,
        max_model_len=facts.context_length + 1,
        max_num_seqs=_SEQUENCES,
        max_num_batched_tokens=max(tokens, _SEQUENCES),
        max_logprobs=-1,  # as many as the vocabulary has; the default is 20
        logprobs_mode="raw_logprobs",
        enable_prefix_caching=False,  # a cached prefix is not scored
        seed=0,
    )


def _version() -> str:
    import vllm

    return str(vllm.__version__)


class EngineTeacher:
    """A model that an engine of this process runs."""

    def __init__(self, engine: Any, devices: int) -> None:
        self._engine = engine
        self._devices = devices

    @property
    def numerics(self) -> Mapping[str, Any]:
        """The engine, its version and how many devices hold the model."""
        import torch

        return {
            "engine": "vllm",
            "version": _version(),
            "torch": torch.__version__,
            "devices": self._devices,
        }

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`; the engine chooses the shapes of its batches."""
        check_selection(selection, given)
        found = self._generate(documents, min(selection.k, selection.vocab_size))
        targets = []
        for ids_L, flat, rows in zip(documents, found, wanted, strict=True):
            mask = np.ones(len(ids_L) - 1, dtype=bool) if rows is None else rows
            targets.append(flat_targets(flat, ids_L, mask, selection))
        return targets

    def _generate(self, documents: Sequence[Int32], count: int) -> list[Any]:
        """``prompt_logprobs`` of each document; of the token that is written nothing is kept."""
        from vllm import SamplingParams

        try:
            with one_memory_error():
                params = SamplingParams(
                    max_tokens=1,
                    temperature=0.0,
                    prompt_logprobs=count,
                    flat_logprobs=True,
                    detokenize=False,
                )
                prompts = [{"prompt_token_ids": ids_L.tolist()} for ids_L in documents]
                answers = self._engine.generate(prompts, params, use_tqdm=False)
        except MemoryError:
            raise
        except Exception as error:  # an engine that is gone says little of why
            raise TeacherError(
                f"vLLM refuses, or has ended: {error}. If memory was short, {_ADVICE}"
            ) from error
        return [answer.prompt_logprobs for answer in answers]


def check_selection(selection: Selection, given: Sequence[Int32 | None] | None = None) -> None:
    """Refuse what lists of log-probabilities cannot give.

    Raises:
        ConfigError: temperatures other than 1, samples, or given ids.
    """
    if selection.temperatures:
        raise ConfigError(
            "vLLM gives log-probabilities at temperature 1 alone, so there is no log-normaliser at "
            f"{', '.join(map(str, selection.temperatures))}: set --temperatures 1 (in training "
            "--temperature 1), or use --backend hf"
        )
    if selection.samples or selection.tau:
        raise ConfigError("vLLM gives exact heads; for sampled entries use --backend hf")
    if given is not None and any(ids is not None and ids.size for ids in given):
        raise ConfigError("vLLM in this process does not score given ids: set --support 0")
