"""Looks of a page: colours for light, dark and paper, and the layout for any width."""

from __future__ import annotations

COLOURS = (
    *("#0b66c3", "#c2410c", "#15803d", "#7c3aed"),
    *("#a16207", "#be185d", "#0e7490", "#57534e"),
)
"""Of the series of a figure, on white."""
INK, FAINT, RULE = "#1d2329", "#69737d", "#dde1e5"
DASHES: tuple[tuple[float, ...], ...] = (
    *((), (7, 3), (2, 3), (10, 3, 2, 3)),
    *((14, 4), (4, 2), (1, 5), (10, 2, 2, 2, 2, 2)),
)
"""Drawn and left out lengths of the series' lines."""
SHADES = 10
"""Steps of a text heat-map, from unshaded."""

_LIGHT = " ".join(f"--c{i}: {colour};" for i, colour in enumerate(COLOURS)) + " --heat: 217,119,6;"
_DARK = (
    "--c0: #5aa9f5; --c1: #fb923c; --c2: #4ade80; --c3: #b79bfa; --c4: #facc15; --c5: #f472b6; "
    "--c6: #22d3ee; --c7: #d6d3d1; --heat: 251,146,60;"
)
_LEGEND = ("solid", "dashed", "dotted", "double") * 2
_SERIES = "\n".join(
    f"polyline.s{i} {{ stroke: var(--c{i}); stroke-dasharray: {' '.join(map(str, dash)) or 0}; }}"
    f" circle.s{i}, rect.s{i} {{ fill: var(--c{i}); }}"
    f" .legend .s{i}::before {{ border-color: var(--c{i}); border-top-style: {line}; }}"
    for i, (dash, line) in enumerate(zip(DASHES, _LEGEND, strict=True))
)
_HEAT = " ".join(
    f".h{step} {{ background: rgba(var(--heat),{0.8 * step / (SHADES - 1):.2f}); }}"
    for step in range(1, SHADES)
)

STYLE = f"""
:root {{ color-scheme: light dark; --ink: {INK}; --faint: {FAINT}; --rule: {RULE};
  --paper: #fff; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e9ec; --faint: #98a2ac; --rule: #343b42; --paper: #14181c; {_DARK} }} }}
@media print {{
  :root {{ --ink: #000; --faint: #444; --rule: #ccc; --paper: #fff; {_LIGHT} }}
  figure, tr {{ break-inside: avoid; }} h2, figcaption, caption {{ break-after: avoid; }}
  .scroll {{ overflow-x: visible; }} }}
body {{ margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 42rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1rem; }}
h2 {{ font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .5rem; }}
figure {{ margin: 2.2rem 0 0; }}
figcaption, caption {{ font-weight: 600; text-align: left; padding-bottom: .3rem; }}
.scroll {{ overflow-x: auto; margin-top: 1.8rem; overflow-wrap: normal; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .4rem .6rem .4rem 0; border-bottom: 1px solid var(--rule); text-align: right; }}
th {{ color: var(--faint); font-weight: 500; font-size: .875rem; vertical-align: bottom; }}
th:first-child, td:first-child {{ text-align: left; min-width: 7rem; }}
@media screen and (min-width: 60rem) {{ .scroll.wide {{ width: fit-content; min-width: 100%;
  max-width: min(94vw, 72rem); position: relative; left: 50%; transform: translateX(-50%); }} }}
td.figure {{ white-space: nowrap; }}
.scroll th:first-child, .scroll td:first-child {{ position: sticky; left: 0;
  background: var(--paper); }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ fill: var(--faint); font-size: 12.5px; }} svg text.name {{ font-size: 10px; }}
@media (max-width: 30rem) {{ svg text {{ font-size: 14px; }} svg text.name {{ font-size: 12px; }} }}
svg text.group {{ fill: var(--ink); }}
svg path {{ fill: none; stroke: var(--rule); }} svg path.axis {{ stroke: var(--faint); }}
svg path.whisker {{ stroke: var(--ink); }}
polyline {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}
.legend {{ list-style: none; margin: 0 0 .4rem; padding: 0; font-size: .9rem; }}
.legend li {{ display: inline-block; margin-right: 1.4rem; }}
.legend li::before {{ content: ""; display: inline-block; width: 1.6rem; margin-right: .45rem;
  vertical-align: middle; border-top: 3px solid; }}
{_SERIES}
.passage p {{ margin: 0; white-space: pre-wrap; line-height: 1.75; }}
.passage span, .scale span {{ border-radius: 2px; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }}
.passage .no {{ color: var(--faint); }} .scale {{ font-size: .875rem; color: var(--faint); }}
.scale span {{ display: inline-block; width: 1.1rem; height: .8rem; vertical-align: middle; }}
{_HEAT}
"""
