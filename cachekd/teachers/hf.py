"""The Hugging Face teacher: anything that ``AutoModelForCausalLM`` loads.

Comes in: a folder or hub id with loading options. Goes out: sparse targets of padded batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import PrecomputeConfig, ScoringConfig
from cachekd.data.attention import AttentionSpec
from cachekd.data.models import (
    adapter_facts,
    code_digest,
    context_length,
    end_tokens,
    model_config,
    resolve_dtype,
    resolve_model,
    weights_digest,
)
from cachekd.errors import TeacherError
from cachekd.teachers import LayerSink, PromptDraw, Selection, TeacherFacts, WritingSpec
from cachekd.teachers._loading import check_extras, input_device, load_model, no_room
from cachekd.teachers._memory import one_memory_error
from cachekd.types import Int32, Int64, TopKLogits

if TYPE_CHECKING:
    from cachekd.teachers._assembly import Tile


class HFTeacher:
    """A causal language model of transformers, on one device or spread by a device map."""

    def __init__(self, model: Any, threads: int) -> None:
        from cachekd.teachers._head import LogitRows

        self._model = model.eval()
        self._device = input_device(model)
        self._threads = threads
        with _cpu_threads(threads):
            self._rows = LogitRows(self._model, self._device)

    @staticmethod
    def identify(config: PrecomputeConfig | ScoringConfig) -> TeacherFacts:
        """Find model, tokenizer and adapter; read the configuration. Loads no weight."""
        folder = resolve_model(config.teacher, config.revision)
        tokenizer = resolve_model(config.tokenizer, weights=False) if config.tokenizer else folder
        adapter = resolve_model(config.adapter) if config.adapter else None
        check_extras(config)
        settings = model_config(folder)
        context = context_length(settings) or config.max_length
        if context is None:
            raise TeacherError(
                f"{config.teacher} does not say how long its inputs may be; set --max-length"
            )
        return TeacherFacts(
            folder=folder,
            weights=weights_digest(folder),
            adapter=adapter_facts(adapter) if adapter else None,
            code=code_digest(folder) if config.trust_remote_code else None,
            tokenizer_folder=tokenizer,
            adapter_folder=adapter,
            config=settings,
            dtype=resolve_dtype(config.dtype, settings, folder),
            context_length=context,
            end_tokens=end_tokens(folder, settings),
        )

    @staticmethod
    def load(
        config: PrecomputeConfig | ScoringConfig, facts: TeacherFacts, threads: int
    ) -> HFTeacher:
        """Load the weights and the adapter.

        Raises:
            TeacherError: transformers cannot load it as configured, or weights of it are not in
                the checkpoint; says why.
        """
        try:
            with one_memory_error():
                model, missing = load_model(config, facts)
        except MemoryError as error:
            raise no_room(config, error) from error
        except Exception as error:  # file formats and code of models have errors of their own
            raise TeacherError(f"teacher {config.teacher} cannot be loaded: {error}") from error
        if missing:
            raise TeacherError(
                f"teacher {config.teacher}: {len(missing)} weights are not in its checkpoint, such "
                f"as {missing[0]}; they would be random numbers. Complete the folder, or check its "
                "config.json"
            )
        found = model.config._attn_implementation
        if found != config.attention_kernel:
            raise TeacherError(
                f"teacher {config.teacher}: expected {config.attention_kernel} attention; the "
                f"model runs {found}. Pass --attn-implementation {found}"
            )
        if config.attention != "none":
            from cachekd.teachers._attention import install

            install(model)
        try:
            with one_memory_error():
                return HFTeacher(model, threads)
        except MemoryError as error:
            raise no_room(config, error) from error

    @property
    def model(self) -> Any:
        """The loaded model, in evaluation mode."""
        return self._model

    @property
    def numerics(self) -> Mapping[str, Any]:
        """Device, threads and versions that the numbers depend on."""
        import torch
        import transformers

        return {
            "device": self._device.type,
            "threads": self._threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "head": "chunks" if self._rows.chunked else "whole",
        }

    def score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None = None,
    ) -> list[TopKLogits]:
        """See `cachekd.teachers.Teacher.score`; padding is on the right and masked."""
        with _inference(self._threads):
            return self._score(documents, padded_length, selection, wanted, given)

    def write(self, prompts: Sequence[PromptDraw], spec: WritingSpec) -> list[Int32]:
        """See `cachekd.teachers.WritingTeacher.write`."""
        from cachekd.teachers._writing import write_with

        with _inference(self._threads):
            return write_with(self._model, self._device, prompts, spec)

    def attention(
        self, spec: AttentionSpec, rows: Sequence[NDArray[np.bool_]], sink: LayerSink
    ) -> AbstractContextManager[None]:
        """See `cachekd.teachers.AttentiveTeacher.attention`."""
        from cachekd.teachers._attention import tapped

        return tapped(spec, rows, sink)

    def _score(
        self,
        documents: Sequence[Int32],
        padded_length: int,
        selection: Selection,
        wanted: Sequence[NDArray[np.bool_] | None],
        given: Sequence[Int32 | None] | None,
    ) -> list[TopKLogits]:
        from cachekd.teachers._assembly import assemble
        from cachekd.teachers._given import given_rows
        from cachekd.teachers._sampling import uniforms

        ids_BT = np.zeros((len(documents), padded_length), dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        captured, flat = [], []
        for b, (ids_L, rows) in enumerate(zip(documents, wanted, strict=True)):
            ids_BT[b, : len(ids_L)] = ids_L
            mask_BT[b, : len(ids_L)] = 1
            captured.append(np.ones(len(ids_L) - 1, dtype=bool) if rows is None else rows)
            flat.append(b * padded_length + captured[-1].nonzero()[0])
        drawn = uniforms(selection, documents, captured)
        given_NJ = given_rows(given, captured, selection)
        tiles = self._tiles(ids_BT, mask_BT, np.concatenate(flat), drawn, selection, given_NJ)
        return assemble(tiles, captured, selection)

    def _tiles(
        self,
        ids_BT: Int64,
        mask_BT: Int64,
        rows_N: Int64,
        drawn_N: NDArray[np.float64] | None,
        selection: Selection,
        given_NJ: Int64 | None,
    ) -> list[Tile]:
        """Targets of rows of the flattened batch: chunks of logits, picked in tiles."""
        import torch

        from cachekd.teachers._downloads import Downloads
        from cachekd.teachers._selection import Workspace, pick, tile_rows

        tokens_BT, mask = (torch.from_numpy(array).to(self._device) for array in (ids_BT, mask_BT))
        rows, place, work = torch.from_numpy(rows_N), 0, Workspace()
        next_N = torch.from_numpy(np.roll(ids_BT.ravel(), -1)[rows_N])
        uniform_N = None if drawn_N is None else torch.from_numpy(drawn_N)
        ids_NJ = None if given_NJ is None else torch.from_numpy(given_NJ)
        downloads = Downloads(self._device, selection)
        for logits_nV in self._rows.chunks(tokens_BT, mask, rows.to(self._device)):
            _check_width(logits_nV.shape[-1], selection)
            device = logits_nV.device
            for tile_mV in torch.split(logits_nV, tile_rows(device.type, logits_nV.shape[-1])):
                part, place = slice(place, place + len(tile_mV)), place + len(tile_mV)
                uniform_m = None if uniform_N is None else uniform_N[part].to(device)
                given_mJ = None if ids_NJ is None else ids_NJ[part].to(device)
                next_m = next_N[part].to(device)
                downloads.add(pick(tile_mV, next_m, uniform_m, selection, work, given_mJ))
        return downloads.finish()


def _check_width(width: int, selection: Selection) -> None:
    if width < selection.vocab_size:
        raise TeacherError(
            f"the teacher gives {width} logits; its tokenizer has "
            f"{selection.vocab_size} tokens. Pass the tokenizer that belongs to it"
        )


@contextmanager
def _cpu_threads(threads: int) -> Iterator[None]:
    """Within, torch runs on this many threads; afterwards on as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _inference(threads: int) -> Iterator[None]:
    """Within, no gradients, so many threads, and one kind of error when memory is short."""
    import torch

    with one_memory_error(), torch.inference_mode(), _cpu_threads(threads):
        yield


PLUGIN = HFTeacher
