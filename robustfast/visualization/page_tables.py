"""The tables of a report, as HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from robustfast.evaluation.comparison import Comparison
from robustfast.evaluation.side_by_side import Line
from robustfast.evaluation.sweep_tables import eps_labels
from robustfast.evaluation.tables import percent, shown

__all__ = [
    "accuracy_table",
    "field_list",
    "paper_table",
    "plain_table",
    "plain_value",
    "sweep_table",
    "throughput_table",
]

NOTHING = "–"


def accuracy_table(lines: Sequence[Line], labels: Sequence[str]) -> str:
    """Fractions in percent, of the later runs with the difference to the first one."""

    def cell(line: Line, position: int) -> str:
        value, first = line.values[position], line.values[0]
        text = NOTHING if value is None else percent(value)
        if position == 0:
            return text
        return text + _delta("" if None in (value, first) else percent(value - first, signed=True))

    return _grouped(lines, labels, cell, number=True)


def throughput_table(lines: Sequence[Line], labels: Sequence[str]) -> str:
    """Images a second and times, of the later runs with the ratio to the first one."""

    def cell(line: Line, position: int) -> str:
        value, first = line.values[position], line.values[0]
        if value is None:
            text = NOTHING
        else:
            text = f"{value:,.0f}" if line.group == "speed" else duration(value)
        if position == 0:
            return text
        return text + _delta(f"×{value / first:.2f}" if value and first else "")

    return _grouped(lines, labels, cell, number=True)


def plain_table(lines: Sequence[Line], labels: Sequence[str]) -> str:
    """Values of any kind; lines in which the runs differ are marked."""
    return _grouped(lines, labels, lambda line, position: _code(line.values[position]), number=False)


def paper_table(label: str, comparison: Comparison) -> str:
    """One run's row of a table of the paper: ours, the paper's, the difference."""
    ((method, cells),) = comparison.rows.items()
    groups = [
        f'<th class="number" colspan="{len(list(members))}">{escape(group)}</th>'
        for group, members in groupby(comparison.columns, key=lambda column: column.group)
    ]
    headings = [f'<th class="number">{escape(column.heading)}</th>' for column in comparison.columns]
    units = [column.unit for column in comparison.columns]

    def texts(values: Iterable[float | None], *, signed: bool = False) -> list[str]:
        return [shown(value, unit, signed=signed) for value, unit in zip(values, units, strict=True)]

    rows = {
        label: texts(cell.ours for cell in cells),
        f"the paper's {comparison.label(method)}": texts(cell.paper for cell in cells),
        "difference": texts((cell.difference for cell in cells), signed=True),
    }
    body = "".join(
        f'<tr><th scope="row" class="wide">{escape(name)}</th>'
        + "".join(f'<td class="number">{NOTHING if value == "-" else value}</td>' for value in values)
        + "</tr>"
        for name, values in rows.items()
    )
    return _table(
        f"<tr><th></th>{''.join(groups)}</tr><tr><th></th>{''.join(headings)}</tr>",
        body,
        caption=f"{comparison.title}{comparison.units}",
    )


def sweep_table(document: Mapping[str, Any], norm: str, caption: str) -> str:
    """Accuracy of the attacks of one norm at each radius, and the area under each curve."""
    attacks = {name: record for name, record in document["attacks"].items() if record["norm"] == norm}
    rows = {**attacks, "all of them": document["worst_case"][norm]} if len(attacks) > 1 else attacks
    grid = sorted({value for record in attacks.values() for value in record["eps"]})
    headings = [*(f"eps {label}" for label in eps_labels(grid)), "AUC"]
    body = ""
    for name, record in rows.items():
        found = dict(zip(record["eps"], record["accuracy"], strict=True))
        values = [percent(found.get(value)) for value in grid]
        values.append("-" if record["auc"] is None else f"{record['auc']:.4f}")
        cells = "".join(f'<td class="number">{NOTHING if value == "-" else value}</td>' for value in values)
        body += f'<tr><th scope="row" class="wide">{escape(name)}</th>{cells}</tr>'
    head = "".join(f'<th scope="col" class="number">{escape(heading)}</th>' for heading in headings)
    return _table(f"<tr><th></th>{head}</tr>", body, caption=caption)


def field_list(lines: Sequence[Line], *, long: bool = False) -> str:
    """The fields of a single run in columns; `long` leaves room for values of many letters."""
    text = ""
    for group, members in groupby(lines, key=lambda line: line.group):
        fields = "".join(
            f"<div><dt>{escape(line.name)}</dt><dd>{_code(line.values[0])}</dd></div>" for line in members
        )
        text += f'<h3>{escape(group)}</h3><dl class="fields{" long" if long else ""}">{fields}</dl>'
    return text


def plain_value(value: Any) -> str:
    """A value of a configuration as its flag takes it; pixel sizes as fractions of 255."""
    if value is None or value in ([], (), ""):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        pixels = round(value * 255)
        exact = len(repr(value)) > 8 and abs(value * 255 - pixels) < 1e-9
        return f"{pixels}/255" if exact else f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain_value, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def duration(seconds: float) -> str:
    """Seconds as a reader thinks of them: 0.42 s, 42.0 s, 3 min, 3 min 20 s, 7 h 12 min."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


def _grouped(
    lines: Sequence[Line], labels: Sequence[str], cell: Callable[[Line, int], str], *, number: bool
) -> str:
    kind = ' class="number"' if number else ' class="wide"'
    head = (
        "<tr><th></th>" + "".join(f'<th scope="col"{kind}>{escape(label)}</th>' for label in labels) + "</tr>"
    )
    body = ""
    for group, members in groupby(lines, key=lambda line: line.group):
        body += (
            f'<tr class="group"><th scope="rowgroup" colspan="{len(labels) + 1}">{escape(group)}</th></tr>'
        )
        body += _rows(members, labels, cell, kind, marked=not number)
    return _table(head, body)


def _rows(
    lines: Iterable[Line], labels: Sequence[str], cell: Callable[[Line, int], str], kind: str, *, marked: bool
) -> str:
    rows = ""
    for line in lines:
        differs = ' class="differs"' if marked and line.differs else ""
        cells = "".join(f"<td{kind}>{cell(line, position)}</td>" for position in range(len(labels)))
        rows += f'<tr{differs}><th scope="row">{escape(line.name)}</th>{cells}</tr>'
    return rows


def _table(head: str, body: str, *, caption: str = "") -> str:
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{title}<thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _code(value: Any) -> str:
    return escape(plain_value(value))


def _delta(text: str) -> str:
    return f'<span class="delta">{text}</span>'
