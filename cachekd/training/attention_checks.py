"""What must hold of attention before a student is loaded, checked from small files: no torch.

In: opened caches and the student's folder. Out: what of the student learns from what of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachekd.data.alignment import LossMask
from cachekd.data.attention import AttentionSpec, attention_shape
from cachekd.data.models import model_config
from cachekd.errors import ConfigError, MismatchError, TeacherError
from cachekd.losses.attention import AttentionMapping, map_attention
from cachekd.store.identity import refuse_difference

if TYPE_CHECKING:
    from cachekd.objectives import Needs
    from cachekd.store.reader import Cache


def check_attention(
    needs: Needs,
    caches: Sequence[Cache],
    folder: Path,
    loss_mask: LossMask = LossMask.AUTO,
) -> AttentionMapping | None:
    """What of the student learns from what of the captured attention; None without such a loss.

    Raises:
        ConfigError: there is no cache, or one that holds no attention; names the flag that would
            have captured it.
        MismatchError: caches hold attention of different layers or heads, or only of responses
            where all tokens are trained; or the student has no counterparts of them.
    """
    if not needs.attention:
        return None
    if not caches:
        raise ConfigError(
            "the objective takes attention, which a live teacher does not give; train from a cache "
            "that was captured with --attention"
        )
    specs = [_attention(cache) for cache in caches]
    first = _learned_from(caches[0], specs[0])
    for cache, spec in zip(caches, specs, strict=True):
        refuse_difference(
            "train, attention",
            first,
            _learned_from(cache, spec),
            f"cache {caches[0].name!r}",
            f"cache {cache.name!r}",
        )
        if spec.rows == "response" and loss_mask is LossMask.ALL:
            raise MismatchError(
                f"cache {cache.name!r} holds attention of response rows, but all tokens are to be "
                "trained. Train on completions, or capture again with --attention-rows all"
            )
    try:
        student = attention_shape(model_config(folder))
    except TeacherError as error:
        raise MismatchError(
            f"train: the config.json of the student {folder} does not state its layers and heads, "
            "which the attention loss maps. Train without attention loss"
        ) from error
    return map_attention(student, first["teacher_layers"], specs[0])


def _attention(cache: Cache) -> AttentionSpec:
    if cache.identity.attention is None:
        raise ConfigError(
            f"cache {cache.name!r} holds no attention, which the objective learns from. Capture "
            "again with --attention maps (or --attention qk for long documents), or set the weight "
            "of the attention loss to 0"
        )
    return AttentionSpec.from_json(cache.identity.attention)


def _learned_from(cache: Cache, spec: AttentionSpec) -> Mapping[str, Any]:
    """What must be the same in caches that are trained on together."""
    return {
        "layers": list(spec.layers),
        "heads": list(spec.heads),
        "teacher_heads": spec.teacher_heads,
        "teacher_layers": attention_shape(cache.identity.source["config"]).layers,
    }
