"""The style sheet of a report: calm on a screen, light or dark, and on paper."""

from __future__ import annotations

from robustfast.visualization.style import COLOURS, DARK

__all__ = ["style_sheet"]

LIGHT_PAGE = {
    "text": "#1f2630",
    "muted": "#626c79",
    "line": "#dfe3e8",
    "page": "#f5f6f8",
    "card": "#ffffff",
    "head": "#f0f2f5",
    "mark": "#fff3d1",
    "wrong": "#b3261e",
    "right": "#2c7a55",
}
DARK_PAGE = {
    "text": "#e4e7eb",
    "muted": "#9ba5b1",
    "line": "#2d343d",
    "page": "#0f1216",
    "card": "#171b21",
    "head": "#1e242c",
    "mark": "#3d3418",
    "wrong": "#ff9a8f",
    "right": "#7fd3a8",
}

RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.55 -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
h1, h2, h3 { line-height: 1.25; margin: 0; font-weight: 650; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h1 { font-size: 28px; }
h2 { font-size: 19px; display: inline; }
h3 { font-size: 15px; margin: 22px 0 8px; }
p { margin: 8px 0; max-width: 80ch; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere; }
.lead { color: var(--muted); margin: 6px 0 20px; }
.note { color: var(--muted); font-size: 13.5px; }
.warn { border-left: 3px solid var(--way-n); padding: 6px 12px; background: var(--head); border-radius: 0 6px 6px 0;
  overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0 0 20px; font-size: 14px; }
a { color: var(--way-r); text-decoration: none; }
a:hover { text-decoration: underline; }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 16px; margin-bottom: 20px; }
.card, details.section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 16px 18px; min-width: 0; }
.card h2 { display: block; font-size: 17px; }
.card .what { color: var(--muted); font-size: 13.5px; margin: 2px 0 12px; overflow-wrap: anywhere; }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 8px; }
.figures { display: flex; flex-wrap: wrap; gap: 12px 20px; margin: 0 0 10px; padding: 0; }
.figures div { min-width: 62px; }
.figures dt { font-size: 12px; color: var(--muted); }
.figures dd { margin: 0; font-size: 20px; font-weight: 620; font-variant-numeric: tabular-nums; line-height: 1.2; }

details.section { margin: 0 0 16px; }
details.section > summary { padding: 14px 18px; cursor: pointer; list-style-position: inside; }
details.section > summary::marker { color: var(--muted); font-size: 13px; }
details.section > .body { padding: 0 18px 20px; }
details.more { margin: 12px 0 0; }
details.more > summary { cursor: pointer; color: var(--muted); font-size: 14px; }
summary:focus-visible, a:focus-visible { outline: 2px solid var(--way-r); outline-offset: 2px; border-radius: 4px; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin: 10px 0 4px; }
caption { text-align: left; font-weight: 600; padding-bottom: 6px; }
th, td { padding: 5px 14px 5px 8px; text-align: left; vertical-align: top; }
thead th { color: var(--muted); font-weight: 560; border-bottom: 1px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 400; min-width: 8.5em; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tr.group th { background: var(--head); font-weight: 600; font-size: 13px; color: var(--muted); }
tr.differs > * { background: var(--mark); }
td.number, th.number { text-align: right; white-space: nowrap; }
.wide { overflow-wrap: anywhere; max-width: 34ch; }
.delta { color: var(--muted); font-size: 12.5px; padding-left: 8px; display: inline-block; min-width: 5.2em; }

figure { margin: 14px 0 6px; min-width: 0; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 6px; max-width: 90ch; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; fill: var(--text); }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 4px 40px;
  align-items: start; }
.beside table { width: 100%; }
.fields { columns: 3 240px; column-gap: 40px; font-size: 14px; margin: 6px 0 0; }
.fields div { display: flex; justify-content: space-between; gap: 16px; padding: 4px 0; break-inside: avoid;
  border-bottom: 1px solid var(--line); }
.fields dt { color: var(--muted); white-space: nowrap; }
.fields dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0; }
.fields.long { columns: 2 380px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 4px 32px; }
.triple { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 4px 24px; }

table.examples { margin: 10px 0 18px; font-size: 12.5px; }
table.examples th, table.examples td { padding: 4px 5px; border: 0; text-align: center; vertical-align: top; }
table.examples tbody th { text-align: right; color: var(--muted); width: 112px; vertical-align: middle;
  padding-right: 10px; line-height: 1.35; }
table.examples tbody + tbody tr:first-child > * { border-top: 1px solid var(--line); padding-top: 8px; }
table.examples tbody tr:last-child > * { padding-bottom: 8px; }
table.examples thead th { border: 0; max-width: 92px; overflow-wrap: anywhere; color: var(--text); font-weight: 600; }
table.examples thead span { font-weight: 400; font-size: 11.5px; color: var(--muted); }
table.examples img { display: block; width: 88px; height: auto; margin: 0 auto; border-radius: 3px; }
img.pixels { image-rendering: pixelated; }
.said { display: block; line-height: 1.35; max-width: 92px; margin: 3px auto 0; overflow-wrap: anywhere; }
.wrong { color: var(--wrong); }
.right { color: var(--right); }
.way { display: inline-block; width: 1.5em; border-radius: 4px; text-align: center;
  font-weight: 600; font-size: 11.5px; line-height: 1.5; }
footer { color: var(--muted); font-size: 13px; margin-top: 28px; }

@media (max-width: 700px) { main { padding: 20px 12px 40px; } h1 { font-size: 23px; } }
"""

PRINT = """
@page { size: A4; margin: 14mm 12mm; }
body { background: none; font-size: 10.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
main { max-width: none; padding: 0; }
nav, details > summary::marker { display: none; }
details > summary { list-style: none; }
details.section { border: 0; border-top: 1px solid var(--line); border-radius: 0; margin: 0 0 4mm; }
details.section > summary, details.section > .body { padding-left: 0; padding-right: 0; }
details.section > summary, h3, caption { break-after: avoid; }
/* Paper has no folds. */
details::details-content { content-visibility: visible !important; display: block !important;
  block-size: auto !important; }
details.more > summary { color: var(--text); font-weight: 600; break-after: avoid; }
.card { break-inside: avoid; }
figure, tr, table.examples tbody { break-inside: avoid; }
thead { display: table-header-group; }
.scroll { overflow: visible; }
.pair, .beside { grid-template-columns: 1fr 1fr; gap: 2mm 8mm; }
.triple { grid-template-columns: 1fr 1fr 1fr; gap: 2mm 4mm; }
.fields { font-size: 9pt; columns: 3 50mm; }
.fields.long { columns: 2 70mm; }
table { font-size: 9pt; }
th, td { padding: 2.2pt 8pt 2.2pt 5pt; }
figcaption { break-inside: avoid; font-size: 8.5pt; max-width: none; }
table.examples img { width: 14.5mm; }
table.examples tbody th { width: 24mm; }
.said, table.examples thead th { max-width: 16mm; font-size: 7.5pt; line-height: 1.2; }
"""


def style_sheet() -> str:
    """The whole style sheet; the colours of figures and of the page are variables of the names in `COLOURS`."""
    light, dark = COLOURS | {"ink": LIGHT_PAGE["text"]} | LIGHT_PAGE, DARK | DARK_PAGE
    screen = f"@media screen and (prefers-color-scheme: dark) {{ {_root(dark, 'dark')} }}"
    return "\n".join([_root(light, "light"), screen, RULES.strip(), f"@media print {{\n{PRINT.strip()}\n}}"])


def _root(colours: dict[str, str], scheme: str) -> str:
    variables = " ".join(f"--{name}: {colour};" for name, colour in colours.items())
    return f":root {{ color-scheme: {scheme}; {variables} }}"
