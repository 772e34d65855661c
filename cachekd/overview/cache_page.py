"""The page of a cache: what it keeps and loses, what it takes, what the teacher finds hard.

In: the figures of `cachekd.overview.cache`. Out: the sections of a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from cachekd.overview.cache import LEAST_KL, LEAST_TAIL
from cachekd.overview.provenance import provenance_of
from cachekd.overview.shaded import domain_of, passages_of
from cachekd.overview.spread import QUANTILES, histogram_of
from cachekd.report.bars import Bars
from cachekd.report.curves import Section, Table
from cachekd.report.text import amount, three_digits

_MOST_DOMAINS = 20
_MOSTLY = 0.9
"""Share of rows of responses from which on leaving out the others saves too little to say so."""
_SPREADS = {
    "mass": "retained mass",
    "tail": "tail mass",
    "entries": "entries",
    "entropy": "entropy, nats",
    "next_loss": "loss on the text, nats",
}
_KL = {
    "kl_flat": "KL, tail spread evenly, nats",
    "kl_unigram": "KL, tail by the mean distribution, nats",
    "kl_flat_2": "KL at temperature 2, tail spread evenly, nats",
}
_COLUMNS = {
    "targets": "targets",
    "input_ids": "token ids",
    "key": "keys",
    "n_tokens": "token counts",
    "n_entries": "entry counts",
    "rest": "footers",
}


def title_of(report: Mapping[str, Any]) -> str:
    """Title of the page."""
    return f"The cache {PurePath(report['cache']).name}"


def intro_of(report: Mapping[str, Any]) -> list[str]:
    """What the cache is and what it comes to, in sentences."""
    about, totals, sample = report["about"], report["totals"], report["sample"]
    tokens = max(1, totals["tokens"])
    kept = "No row of the sample has targets."
    if report["mass"] is not None:
        kept = (
            f"A row keeps {report['entries']['mean']:.1f} entries in the mean, which hold "
            f"{report['mass']['mean']:.2%} of the teacher's mass; all files together take "
            f"{report['bytes']['total'] / tokens:.1f} bytes a token."
        )
    return [
        f"{totals['samples']:,} samples of {totals['sample_tokens']:,} tokens, scored by the "
        f"teacher {about.get('teacher') or '(not recorded)'}. {kept} {_kl_said(report)}",
        f"Figures of rows are those of {sample['records']:,} of {sample['of_records']:,} records, "
        f"drawn at random with seed {sample['seed']} from {sample['shards']:,} of "
        f"{sample['of_shards']:,} shards: {sample['rows']:,} rows with targets, and "
        f"{sample['rows_without_targets']:,} without. Sizes are those of the whole cache.",
        *_warnings(report),
    ]


def _kl_said(report: Mapping[str, Any]) -> str:
    kl = report["kl"]
    if kl is None:
        return f"KL of the dense teacher to the stored targets: {report['kl_gap']}."
    return (
        f"KL of the dense teacher to the stored targets is {kl['kl_flat']['mean']:.4f} nats in the "
        f"mean over {kl['kl_flat']['count']:,} rows of {kl['records']:,} records."
    )


def _warnings(report: Mapping[str, Any]) -> list[str]:
    lacking, infinite = report["about"]["left_out_by_repair"], report["next_loss_infinite"]
    imported = report["about"]["imported_said"]
    said = [imported] if imported else []
    said += _of_responses(report)
    if lacking:
        said.append(
            f"The cache was repaired: {lacking:,} files that it had are left out; the precompute "
            "command makes them anew."
        )
    if infinite:
        said.append(f"{infinite:,} rows give the text's next token no probability at all.")
    return said


def _of_responses(report: Mapping[str, Any]) -> list[str]:
    """How much of a cache of whole texts a loss on responses alone would read."""
    sample = report["sample"]
    share = sample["rows_of_responses"] / max(1, sample["rows"])
    if report["about"]["rows"] != "all" or not 0 < share <= _MOSTLY:
        return []
    return [
        f"Only {share:.0%} of the rows are of responses. If you train on responses alone, as "
        "cachekd train does by default, a cache captured with --rows response is about as much "
        "smaller."
    ]


def sections_of(report: Mapping[str, Any]) -> list[Section]:
    """All parts of the page below the introduction."""
    return [
        _fidelity(report),
        _certainty(report),
        *_domains(report["domains"]),
        _sizes(report),
        *passages_of(report),
        provenance_of(report),
    ]


def _fidelity(report: Mapping[str, Any]) -> Section:
    log = report["entries_log"]
    plots = [
        histogram_of(report["mass"], "Retained mass", "mass of the exact head"),
        histogram_of(
            report["tail"],
            "Tail mass",
            f"mass outside the exact head ({LEAST_TAIL:g} and less in the first bin)",
            log_x=True,
        ),
        histogram_of(report["entries"], "Support size", "entries a row", log_x=log),
    ]
    kl = report["kl"] or {}
    plots += [
        histogram_of(kl[name], title, f"nats ({LEAST_KL:g} and less in the first bin)", log_x=True)
        for name, title in _KL.items()
        if name in kl
    ]
    rows = [(name, report[key]) for key, name in _SPREADS.items() if key not in _CERTAINTY]
    rows += [(name, kl.get(key)) for key, name in _KL.items() if key in kl or key == "kl_flat"]
    return Section(
        heading="What the rows keep",
        text=[_kl_said(report)] if not kl else [_masses(kl)],
        tables=[_quantiles("Over the rows of the sample", rows)],
        plots=plots,
    )


def _masses(kl: Mapping[str, Any]) -> str:
    parts = [f"{kl[f'mass_{t}']:.2%} at temperature {t}" for t in (1, 2, 4)]
    return f"Of the dense teacher's mass the exact head holds {', '.join(parts)}, measured anew."


_CERTAINTY = ("entropy", "next_loss")


def _certainty(report: Mapping[str, Any]) -> Section:
    return Section(
        heading="How certain the teacher is",
        text=[_certainty_said(report["about"]["imported"] or {})],
        tables=[
            _quantiles(
                "Over the rows of the sample", [(_SPREADS[key], report[key]) for key in _CERTAINTY]
            )
        ],
        plots=[
            histogram_of(report["entropy"], "Entropy", "nats"),
            histogram_of(report["next_loss"], "Loss on the text", "nats"),
        ],
    )


def _certainty_said(imported: Mapping[str, str]) -> str:
    """What these figures are; of an import, where they are bounds."""
    entropy, loss = imported.get("entropy", "stored"), imported.get("next_logprob", "stored")
    return (
        "Entropy is that of the whole distribution"
        + ("" if entropy == "stored" else f" ({entropy}: of the entries and the tail as one)")
        + "; the loss is the negative log-probability of the text's own next token"
        + ("" if loss == "stored" else f" ({loss}: the least that it can be)")
        + "."
    )


def _quantiles(title: str, rows: Sequence[tuple[str, Mapping[str, Any] | None]]) -> Table:
    shown = []
    for name, spread in rows:
        values = ["not measured"] + [""] * len(QUANTILES)
        if spread is not None:
            values = list(map(three_digits, (spread["mean"], *spread["quantiles"].values())))
        shown.append((name, *values))
    header = ("", "mean", *(f"{100 * q:g} %" for q in QUANTILES))
    return Table(title=title, header=header, rows=tuple(shown))


def _domains(domains: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Nothing where all records are of one domain."""
    if not domains:
        return []
    shown = domains[:_MOST_DOMAINS]
    left = len(domains) - len(shown)
    rows = tuple(
        (
            domain_of(one),
            f"{one['rows']:,}",
            f"{one['mass']:.4f}",
            f"{one['entries']:.1f}",
            *("-" if one[k] is None else f"{one[k]:.3f}" for k in ("entropy", "next_loss")),
            "not measured" if one["kl_flat"] is None else f"{one['kl_flat']:.4f}",
        )
        for one in shown
    )
    header = ("domain", "rows", "mass", "entries", "entropy", "loss on the text", "KL")
    names = tuple(domain_of(one) for one in shown)
    entropy = [one["entropy"] for one in shown]
    return [
        Section(
            heading="By domain",
            text=[f"{left:,} smaller domains are not shown."] if left else [],
            tables=[Table(title="Means over the rows of a domain", header=header, rows=rows)],
            plots=[
                Bars(
                    title="Entropy by domain",
                    x_label="nats",
                    groups=names,
                    series=(("entropy", entropy, None),),
                )
            ],
        )
    ]


def _sizes(report: Mapping[str, Any]) -> Section:
    sizes, tokens = report["bytes"], max(1, report["totals"]["tokens"])
    kinds = [*sizes["kinds"].items(), ("all files", sizes["total"])]
    rows = tuple((kind, amount(size), f"{size / tokens:.2f}") for kind, size in kinds)
    columns = sizes["columns"]
    held = [name for name in _COLUMNS if name in columns]
    per_token = [columns[name] / max(1, sizes["column_tokens"]) for name in held]
    return Section(
        heading="What it takes",
        tables=[Table(title="By kind of file", header=("", "size", "bytes a token"), rows=rows)],
        plots=[
            Bars(
                title="Shards of logits, by column",
                x_label="bytes a token",
                groups=tuple(_COLUMNS[name] for name in held),
                series=(("bytes a token", per_token, None),),
            )
        ],
    )
