"""Responses as they grow: what is drawn, who is done, and what of the batch goes on.

In: prompts, and the log-probabilities of the next token of each live row. Out: tokens, and at the
end `Written` responses of explicit lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cachekd.rollouts import Ask, Written
from cachekd.rollouts.ngrams import NGrams
from cachekd.teachers._writing import gumbel, stream_seeds
from cachekd.types import Int32


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSpec:
    """How responses are written.

    Attributes:
        max_new_tokens: most tokens of a response, forced ones and the end token among them.
        vocab_size: real vocabulary V; no token beyond it is written.
        end_tokens: a response ends with the first of these.
        temperature, top_k, top_p: what is drawn from, as transformers define it.
        greedy: take the most probable token; nothing is drawn.
        seed: of the draws.
        no_repeat_ngram_size: above 0, no n-gram of so many tokens is written that the prompt or the
            response has already (`cachekd.rollouts.ngrams`).
        batch_tokens: token budget of a batch (rows x longest prompt and response).
    """

    max_new_tokens: int
    vocab_size: int
    end_tokens: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    seed: int = 0
    no_repeat_ngram_size: int = 0
    batch_tokens: int = 16384


class Responses:
    """Responses as they grow.

    Args:
        asks: what is answered.
        spec: how.
        device: of the student.
    """

    def __init__(self, asks: Sequence[Ask], spec: DrawSpec, device: torch.device) -> None:
        self._asks, self._spec, self._device = asks, spec, device
        self._tokens = [ask.forced[: spec.max_new_tokens].tolist() for ask in asks]
        self._logprobs = [[0.0] * len(tokens) for tokens in self._tokens]
        self._open = [i for i in range(len(asks)) if not self._over(i)]
        self._live = list(self._open)
        self._seeds_B = stream_seeds([asks[i] for i in self._live], spec.seed).to(device)
        texts = (self._whole(i).tolist() for i in range(len(asks)))
        size = spec.no_repeat_ngram_size
        self._ngrams = NGrams(size, texts) if size else None

    def _over(self, row: int) -> bool:
        tokens = self._tokens[row]
        ended = bool(tokens) and tokens[-1] in self._spec.end_tokens
        return ended or len(tokens) >= self._spec.max_new_tokens

    def _whole(self, row: int) -> Int32:
        """Prompt and response so far."""
        return np.concatenate([self._asks[row].input_ids, _ids(self._tokens[row])])

    def done(self) -> bool:
        """Whether nothing is left to write."""
        return not self._open

    def context(self) -> tuple[Tensor, Tensor]:
        """Prompts with what their responses begin with, padded on the left, and their mask."""
        whole = [self._whole(i) for i in self._live]
        width = max(map(len, whole))
        pad = self._spec.end_tokens[0] if self._spec.end_tokens else 0
        ids_BT = np.full((len(whole), width), pad, np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, ids in enumerate(whole):
            ids_BT[row, width - len(ids) :] = ids
            mask_BT[row, width - len(ids) :] = 1
        return (torch.from_numpy(array).to(self._device) for array in (ids_BT, mask_BT))  # type: ignore[return-value]

    def banned(self) -> tuple[Tensor, Tensor] | None:
        """Live rows and tokens that they may not go on with, int64 [n] and [n]; None: all may."""
        if self._ngrams is None:
            return None
        still = set(self._open)
        pairs = [
            (place, token)
            for place, row in enumerate(self._live)
            if row in still
            for token in self._ngrams.banned(row)
        ]
        if not pairs:
            return None
        rows_n, tokens_n = torch.tensor(pairs, device=self._device).unbind(1)
        return rows_n, tokens_n

    def draw(self, log_p_BV: Tensor) -> Tensor:
        """The next token of each live row, int64 [B]; of rows that are over it is not used."""
        if self._spec.greedy:
            tokens_B = log_p_BV.argmax(-1)
        else:
            steps_B = torch.tensor([len(self._tokens[i]) for i in self._live], device=self._device)
            noise_BV = gumbel(self._seeds_B, steps_B, log_p_BV.shape[-1])
            tokens_B = noise_BV.add_(log_p_BV).argmax(-1)
        drawn_B = log_p_BV.gather(1, tokens_B[:, None])[:, 0]
        still = set(self._open)
        for row, token, logprob in zip(
            self._live, tokens_B.tolist(), drawn_B.tolist(), strict=True
        ):
            if row in still:
                self._tokens[row].append(token)
                self._logprobs[row].append(logprob)
                if self._ngrams is not None:
                    self._ngrams.add(row, token)
        self._open = [row for row in self._open if not self._over(row)]
        return tokens_B

    def going(self) -> Tensor:
        """Which live rows are not over, int64 [B]."""
        still = set(self._open)
        return torch.tensor([int(row in still) for row in self._live], device=self._device)

    def dropped(self) -> Tensor | None:
        """Places of rows that go on, once half of the live ones are over; None before."""
        if 2 * len(self._open) > len(self._live):
            return None
        still = set(self._open)
        kept = [place for place, row in enumerate(self._live) if row in still]
        self._live = [self._live[place] for place in kept]
        kept_B = torch.tensor(kept, device=self._device)
        self._seeds_B = self._seeds_B[kept_B]
        return kept_B

    def written(self) -> list[Written]:
        """The responses."""
        return [
            Written(
                response=_ids(tokens),
                logprob=np.array(logprobs, np.float32),
                ended=bool(tokens) and tokens[-1] in self._spec.end_tokens,
            )
            for tokens, logprobs in zip(self._tokens, self._logprobs, strict=True)
        ]


def _ids(tokens: Sequence[int]) -> Int32:
    return np.array(tokens, np.int32)
