"""Candidate settings: a grid over kinds of selection and of rounding, and the user's own.

Goes out: named settings, each with the capture it would make of a source. Levels uniform in sqrt(p)
choose their own entries (all above half a step), so that only their step varies.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from cachekd.capture.job import selection_of
from cachekd.config import (
    DataConfig,
    ModelConfig,
    PlanConfig,
    SelectionConfig,
    canonical_json,
    precompute_config,
)
from cachekd.store.identity import Identity, capture_id, capture_spec
from cachekd.teachers import Selection

OWN = "as configured"
_SQRT = {"logits_selection": "top_k", "logits_top_k": 256, "logits_values": "sqrt"}
_LOG = {"logits_selection": "top_p", "logits_top_p": 0.99, "logits_values": "log"}
_TOP = {"logits_selection": "top_k", "logits_values": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A setting to measure.

    Attributes:
        name: what tables call it.
        flags: flags of precompute that differ from its defaults.
        identity: source, and the capture it would make.
        selection: what a teacher would be asked to keep.
    """

    name: str
    flags: str
    identity: Identity
    selection: Selection

    @property
    def sampled(self) -> bool:
        """Whether its targets are unbiased draws, exact only in expectation."""
        return self.selection.samples > 0 or self.selection.tau > 0


def candidates(
    config: PlanConfig, source_id: str, source: Mapping[str, Any]
) -> tuple[Candidate, ...]:
    """The user's own setting first, then the grid; two that make one capture are one."""
    own = {item.name: getattr(config, item.name) for item in fields(SelectionConfig)}
    kernel, found = precompute_config(config).attention_kernel, dict[str, Candidate]()
    for name, changes in [(OWN, {}), *_grid()]:
        setting = SelectionConfig(
            **{**own, **({"logits_step": None} if changes else {}), **changes}
        )
        spec = capture_spec(setting, kernel, source["vocab_size"])
        identity = Identity(
            source_id=source_id,
            source=source,
            capture_id=capture_id(source_id, spec),
            capture=spec,
            provenance={},
        )
        candidate = Candidate(
            name=name,
            flags=flags_of(setting, SelectionConfig),
            identity=identity,
            selection=selection_of(identity),
        )
        found.setdefault(canonical_json(spec), candidate)
    return tuple(found.values())


def _grid() -> Iterator[tuple[str, dict[str, Any]]]:
    for parts in (8, 12, 16, 24, 32, 48):
        yield f"sqrt 1/{parts}", {**_SQRT, "logits_step": 1 / parts}
    for k in (32, 64, 128):
        yield f"log 1/8, top {k}, p .99", {**_LOG, "logits_step": 1 / 8, "logits_top_k": k}
    for k in (16, 64, 128):
        yield f"float16, top {k}", {**_TOP, "logits_top_k": k}
    yield (
        "float16, top 64, p .99",
        {**_TOP, "logits_selection": "top_p", "logits_top_k": 64, "logits_top_p": 0.99},
    )
    for tau in (0.04, 0.02, 0.01):
        kind = {"logits_selection": "top_k+sampled", "logits_top_k": 128, "logits_tau": tau}
        yield f"sampled below {tau:g}", {**_TOP, **kind}
    yield "50 draws", {**_TOP, "logits_selection": "sampled", "logits_samples": 50}


def flags_of(config: SelectionConfig | DataConfig | ModelConfig, kind: type) -> str:
    """Flags of precompute for the fields of this kind that are not at their default."""
    parts = []
    for item in fields(kind):
        value = getattr(config, item.name)
        usual = item.default if item.default_factory is MISSING else item.default_factory()
        if value != usual:
            parts += _words("--" + item.name.replace("_", "-"), value)
    return shlex.join(parts)


def _words(flag: str, value: Any) -> list[str]:
    """A flag with its value, as the command line takes it."""
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, Mapping):
        return [flag, ",".join(f"{key}={item}" for key, item in value.items())]
    if isinstance(value, tuple) and isinstance(value[0], str):
        return [word for item in value for word in (flag, item)]
    if isinstance(value, tuple):
        return [flag, ",".join(f"{item:g}" for item in value)]
    if flag == "--logits-step" and 1 / round(1 / value) == value:
        return [flag, f"1/{round(1 / value)}"]
    return [flag, str(value)]
