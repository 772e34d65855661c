"""What is kept of a teacher's attention: the choice as a noun, and how settings become one.

In: settings and the teacher's configuration. Out: an `AttentionSpec`, whose JSON is part of the
attention's capture id. Which query rows are drawn is decided here too, and which function is a
model's own eager attention.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachekd.config import ATTENTION_STEPS, AttentionConfig
from cachekd.data import limits, strict
from cachekd.data.splitmix import GAMMA, mixed
from cachekd.errors import ConfigError, CorruptCache, TeacherError

MEAN = -1
"""Number of the head that is the mean of all heads."""
_DEFAULT_LAYERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What is kept of the attention of one teacher.

    Attributes:
        kind: maps (probabilities) or qk (queries and keys after RoPE).
        layers: layer numbers, ascending.
        heads: head numbers, ascending; (-1,) is the mean of all heads.
        teacher_heads, key_heads, head_width: of every layer of the teacher.
        rows: all, or response: rows whose next token is a response token.
        share, seed: each of these rows is kept with probability ``share``.
        keys: maps: keys kept a row, 0 for all causal keys.
        values: how values are rounded: sqrt or log (maps), qk.
        step: distance of two levels.
    """

    kind: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    teacher_heads: int
    key_heads: int
    head_width: int
    rows: str
    share: float
    seed: int
    keys: int
    values: str
    step: float

    @property
    def stored_key_heads(self) -> tuple[int, ...]:
        """qk: key heads that the stored heads read, ascending."""
        return tuple(sorted({self._key_head(head) for head in self.heads}))

    @property
    def groups(self) -> tuple[int, ...]:
        """qk: for each stored head the place of its key head among the stored ones."""
        places = self.stored_key_heads
        return tuple(places.index(self._key_head(head)) for head in self.heads)

    def _key_head(self, head: int) -> int:
        return head * self.key_heads // self.teacher_heads

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types: what the capture id is a digest of."""
        return {**asdict(self), "layers": list(self.layers), "heads": list(self.heads)}

    @classmethod
    def from_json(cls, value: Any) -> AttentionSpec:
        """From a document of a cache.

        Raises:
            CorruptCache: fields are missing, of another type, or impossible.
        """
        try:
            spec = cls(
                kind=strict.text(value["kind"]),
                layers=strict.listed(value["layers"], limits.LAYERS, _number),
                heads=strict.listed(value["heads"], limits.HEADS, _head),
                teacher_heads=strict.whole(value["teacher_heads"], limits.HEADS, 1),
                key_heads=strict.whole(value["key_heads"], limits.HEADS, 1),
                head_width=strict.whole(value["head_width"], limits.HEAD_WIDTH, 1),
                seed=strict.whole(value["seed"], 2**63 - 1, -(2**63)),
                keys=_number(value["keys"]),
                rows=strict.text(value["rows"]),
                share=strict.number(value["share"]),
                values=strict.text(value["values"]),
                step=strict.number(value["step"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCache(f"an attention capture cannot be read: {error!r:.300}") from error
        if not spec._possible():
            raise CorruptCache(f"an attention capture holds impossible values: {spec}")
        return spec

    def _possible(self) -> bool:
        values = ("qk",) if self.kind == "qk" else ("sqrt", "log")
        heads = range(self.teacher_heads)
        return (
            self.kind in ("maps", "qk")
            and self.values in values
            and ATTENTION_STEPS[self.values][1] <= self.step <= 1.0
            and 0.0 < self.share <= 1.0
            and self.rows in ("all", "response")
            and len(self.layers) > 0
            and self.layers == tuple(sorted(set(self.layers)))
            and self.key_heads <= self.teacher_heads
            and len(self.heads) > 0
            and self.heads == tuple(sorted(set(self.heads)))
            and (self.heads == (MEAN,) or all(head in heads for head in self.heads))
            and not (self.kind == "qk" and MEAN in self.heads)
        )


def _head(value: Any) -> int:
    return strict.whole(value, limits.HEADS, MEAN)


def _number(value: Any) -> int:
    return strict.whole(value, 2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Layers and heads of a teacher."""

    layers: int
    heads: int
    key_heads: int
    head_width: int


def attention_shape(settings: Mapping[str, Any]) -> AttentionShape:
    """Layers and heads that a ``config.json`` states.

    Raises:
        TeacherError: it states none.
    """
    text = settings.get("text_config")
    found: Mapping[str, Any] = text if isinstance(text, Mapping) else settings
    layers = found.get("num_hidden_layers") or found.get("n_layer") or found.get("num_layers")
    heads = found.get("num_attention_heads") or found.get("n_head") or found.get("num_heads")
    width = found.get("hidden_size") or found.get("n_embd") or found.get("d_model")
    if not (layers and heads and (width or found.get("head_dim"))):
        raise TeacherError(
            "the teacher's config.json does not state num_hidden_layers, num_attention_heads and "
            "hidden_size; attention targets need them. Pass --attention none"
        )
    return AttentionShape(
        layers=int(layers),
        heads=int(heads),
        key_heads=int(found.get("num_key_value_heads") or heads),
        head_width=int(found.get("head_dim") or int(width or 0) // int(heads)),
    )


def attention_spec(config: AttentionConfig, shape: AttentionShape) -> AttentionSpec:
    """The choice that settings make (of kind maps or qk).

    Raises:
        ConfigError: the teacher has no such layer or head.
    """
    qk = config.attention == "qk"
    values = "qk" if qk else config.attention_values
    drawn = config.attention_row_share < 1.0
    return AttentionSpec(
        kind="qk" if qk else "maps",
        layers=_layers(config.attention_layers, shape.layers),
        heads=_heads(config.attention_heads, shape.heads),
        teacher_heads=shape.heads,
        key_heads=shape.key_heads,
        head_width=shape.head_width,
        rows=config.attention_rows,
        share=config.attention_row_share,
        seed=config.attention_seed if drawn else 0,
        keys=config.attention_keys,
        values=values,
        step=config.attention_step or ATTENTION_STEPS[values][0],
    )


def _layers(asked: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    if not asked:
        kept = min(_DEFAULT_LAYERS, count)
        return tuple((i + 1) * count // kept - 1 for i in range(kept))
    if not all(0 <= layer < count and layer == int(layer) for layer in asked):
        raise ConfigError(
            f"attention_layers: the teacher has layers 0 to {count - 1}; found {sorted(asked)}"
        )
    return tuple(sorted({int(layer) for layer in asked}))


def _heads(asked: str, count: int) -> tuple[int, ...]:
    if asked == "all":
        return tuple(range(count))
    if asked == "mean":
        return (MEAN,)
    parts = asked.split(",")
    if not all(part.strip().isdecimal() and int(part) < count for part in parts):
        raise ConfigError(
            f"attention_heads: expected all, mean, or numbers from 0 to {count - 1} with commas; "
            f"found {asked!r}"
        )
    return tuple(sorted({int(part) for part in parts}))


def drawn_rows(spec: AttentionSpec, key: bytes, rows: int) -> NDArray[np.bool_]:
    """Which of a document's rows are in the random subset, bool [rows].

    A function of seed, document key and row alone: the same rows are drawn whatever the batch,
    order or machine. Each row is in it with probability ``share``, independent of the others.
    """
    if spec.share >= 1.0:
        return np.ones(rows, dtype=np.bool_)
    seed = spec.seed.to_bytes(8, "little", signed=True)
    start = int.from_bytes(hashlib.blake2b(key + seed, digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(GAMMA)
    drawn: NDArray[np.bool_] = (mixed(z) >> np.uint64(11)) < np.uint64(spec.share * 2.0**53)
    return drawn


def eager_attention(module: Any) -> Callable[..., Any] | None:
    """``eager_attention_forward`` of the file that defines a module's class or a base of it."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            found: Callable[..., Any] = function
            return found
    return None
