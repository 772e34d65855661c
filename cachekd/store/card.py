"""The cache card: ``README.md`` of a cache, written from its seal."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from cachekd.store.identity import Identity

if TYPE_CHECKING:
    from cachekd.store.manifest import Manifest


_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_LARGE = "n>1M"


def card(
    identity: Identity,
    manifest: Manifest,
    *,
    place: str = "THIS_FOLDER",
    license: str | None = None,
    further: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """Markdown with the metadata block that dataset hubs read.

    Args:
        identity: of the cache.
        manifest: its seal.
        place: where it is, as a command names it.
        license: of the targets, as the hub names licences.
        further: lines of the table that were measured.
    """
    told = {"Licence of the targets": license} if license else {}
    rows = {**_rows(identity, manifest), **told, **further}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"---\n{_metadata(manifest, license)}---\n\n"
        "# Cached teacher logits\n\n"
        "Sparse next-token distributions of a teacher language model, for knowledge distillation "
        "with cachekd.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "Train a student with the same tokenizer:\n\n"
        f"    cachekd train --cache {place} --student STUDENT --output-dir OUT\n\n"
        "The licence of the teacher and of the data apply to these targets.\n"
    )


def _rows(identity: Identity, manifest: Manifest) -> dict[str, object]:
    """What the table says."""
    totals = manifest.totals
    selection = identity.capture["selection"]
    per_target = totals["bytes"] / max(1, totals["targets"])
    return {
        "Teacher": identity.provenance.get("teacher"),
        "Revision": identity.provenance.get("revision") or "not given",
        "Source id": identity.source_id,
        "Capture id": identity.capture_id,
        "Root digest": manifest.root,
        "Teacher dtype": identity.source["dtype"],
        "Vocabulary": identity.source["vocab_size"],
        "Selection": ", ".join(f"{key} {value}" for key, value in selection.items()),
        "Values": ", ".join(
            f"{key} {value}" for key, value in identity.capture["logprobs"].items()
        ),
        "Rows": identity.capture["rows"],
        "Temperatures": ", ".join(map(str, identity.capture["temperatures"])),
        **_attention(identity, manifest),
        "Samples": totals["samples"],
        "Tokens": totals["sample_tokens"],
        "Entries per target": f"{totals['entries'] / max(1, totals['targets']):.2f}",
        "Bytes per target": f"{per_target:.1f}",
        "Bytes per token": f"{totals['bytes'] / max(1, totals['tokens']):.1f}",
        "Rows left out or cut, by run": _changes(manifest) or "none",
    }


def _metadata(manifest: Manifest, license: str | None) -> str:
    """The block that the hub, its viewer and `datasets.load_dataset` read."""
    samples = manifest.totals["samples"]
    size = next((name for most, name in _SIZES if samples < most), _LARGE)
    kinds = {"logits": manifest.shards, "samples": manifest.samples}
    configs = "".join(
        f"- config_name: {kind}\n  data_files: {kind}/*.parquet\n"
        for kind, shards in kinds.items()
        if shards
    )
    return (
        (f"license: {license}\n" if license else "")
        + "task_categories:\n- text-generation\n"
        + "tags:\n- cachekd\n- knowledge-distillation\n"
        + f"size_categories:\n- {size}\n"
        + (f"configs:\n{configs}" if configs else "")
    )


def _attention(identity: Identity, manifest: Manifest) -> dict[str, object]:
    spec = identity.attention
    if spec is None:
        return {}
    heads = "mean" if spec["heads"] == [-1] else ", ".join(map(str, spec["heads"]))
    per_token = manifest.totals.get("attention_bytes", 0) / max(1, manifest.totals["tokens"])
    return {
        "Attention capture id": identity.attention_id,
        "Attention": f"{spec['kind']}, {spec['values']} step {spec['step']:.4g}",
        "Attention layers": ", ".join(map(str, spec["layers"])),
        "Attention heads": heads,
        "Attention query rows": f"{spec['rows']}, share {spec['share']:g}",
        "Attention keys a row": spec["keys"] or "all",
        "Attention bytes per token": f"{per_token:.1f}",
    }


def _changes(manifest: Manifest) -> str:
    runs = [{**run["skipped"], **run["changed"]} for run in manifest.runs]
    return "; ".join(", ".join(f"{k}: {v}" for k, v in run.items()) for run in runs if run)
