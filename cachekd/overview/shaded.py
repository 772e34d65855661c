"""The passages of a cache's page: text shaded by the teacher's entropy before each token.

In: the figures of `cachekd.overview.cache`. Out: sections of a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachekd.report.curves import Section
from cachekd.report.heat import Passage, shades_of, visible


def domain_of(one: Mapping[str, Any]) -> str:
    """A domain's name as it is shown."""
    return visible(one["domain"]) or "(none)"


def passages_of(report: Mapping[str, Any]) -> list[Section]:
    """Least and most certain ones, or why there are none."""
    spread = report["entropy"]
    if spread is None or not report["least_certain"]:
        return [
            Section(
                heading="Where the teacher is least and most certain",
                text=["Not shown: no record of the sample has enough rows with targets."],
            )
        ]
    most = max(spread["quantiles"]["0.99"], 1e-9)
    said = (
        []
        if report["text"]
        else ["Tokens are shown by their ids: name a tokenizer (--tokenizer) to read them."]
    )
    shades = ("0 nats", f"{most:.2g} nats and more")
    return [
        Section(
            heading=f"Where the teacher is {name} certain",
            text=[
                "A token's shade is the teacher's entropy before it; its figures are under the "
                "pointer.",
                *said,
            ],
            passages=[_passage(one, most, bool(report["domains"])) for one in report[key]],
            shades=shades,
        )
        for name, key in (("least", "least_certain"), ("most", "most_certain"))
    ]


def _passage(one: Mapping[str, Any], most: float, several_domains: bool) -> Passage:
    domain = f", domain {domain_of(one)}" if several_domains else ""
    columns = ("entropy", "next_logprob", "tail", "entries")
    return Passage(
        title=f"Sample {one['sample']:,}{domain}: {one['mean_entropy']:.2f} nats in the mean",
        tokens=tuple(one["tokens"]),
        shades=shades_of(one["entropy"], most),
        notes=tuple(
            _note(*figures) for figures in zip(*(one[name] for name in columns), strict=True)
        ),
    )


def _note(entropy: float | None, logprob: float | None, tail: float | None, entries: int) -> str:
    if entropy is None or tail is None:
        return "no targets"
    said = "no probability" if logprob is None else f"log-probability {logprob:.3f}"
    return f"entropy {entropy:.3f} nats; {said}; {entries} entries hold {1 - tail:.2%}"
