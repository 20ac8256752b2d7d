"""Tables from plain numbers: how each metric is named, printed and judged."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from scorevae.evaluation.report.page import Cell, Label, Number, Table, Value, Values


class Metric(NamedTuple):
    """How a metric is printed."""

    label: str
    meaning: str = ""
    better: Literal["lower", "higher", "one", ""] = ""
    digits: int = 4
    headline: int | None = None  # decimals on its card at the top of the page; None: no card
    absent: str = ""  # what None means, where no reason was given


Metrics = Mapping[str, Metric]
Row = Mapping[str, str | Value]
Rows = list[Row]

# With a space that does not break.
ARROWS = {"lower": "\u00a0↓", "higher": "\u00a0↑", "one": "\u00a0→\u00a01", "": ""}
ARROW_NOTE = "↓ lower is better, ↑ higher is better, → 1 closest to one is best; bold: the best."


def metric_label(name: str, metrics: Metrics) -> Label:
    """The head of a metric's row; an unknown metric goes by its own name."""
    known = _known(name, metrics)
    return Label(known.label + ARROWS[known.better], known.meaning)


def _known(name: str, metrics: Metrics) -> Metric:
    return metrics.get(name) or Metric(name.replace("_", " ").capitalize())


def number(metric: Metric, value: Value, reason: str = "", *, best: bool = False) -> Number:
    """A value with its metric's precision; without unit, which the label has."""
    return Number(value, metric.digits, reason=reason, best=best)


def systems_table(
    caption: str,
    numbers: Mapping[str, Values],
    metrics: Metrics,
    titles: Mapping[str, str],
    reasons: Mapping[str, str] | None = None,
    note: str = "",
) -> Table:
    """One row for each metric, one column for each system.

    ``numbers`` maps system -> metric -> value, as in ``metrics.json``; a metric that only
    some systems have is missing in the others. A system without a title goes by its name.
    ``reasons`` say why a value is None, under "system.metric", "metric" or "system".
    """
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(m for values in numbers.values() for m in values):
        metric = _known(name, metrics)
        values = [numbers[system].get(name) for system in numbers]
        best = _best(metric, values)
        rows.append([metric_label(name, metrics)])
        for system, value in zip(numbers, values, strict=True):
            why = reason_of(reasons or {}, f"{system}.{name}", name, system)
            why = why or (metric.absent if name in numbers[system] else "not applicable")
            rows[-1].append(number(metric, value, why, best=value is not None and value in best))
    columns = ["Metric", *(titles.get(system, system) for system in numbers)]
    return Table(caption, columns, rows, note)


def records_table(caption: str, records: Sequence[Row], metrics: Metrics) -> Table:
    """One row for each record (a setting, an experiment), one column for each key.

    The keys of the first record are the columns; the first one is the head of each row.
    """
    names = list(records[0]) if records else []
    rows: list[list[Cell]] = []
    for record in records:
        cells = ((name, record.get(name)) for name in names)
        rows.append([c if isinstance(c, str) else number(_known(n, metrics), c) for n, c in cells])
    return Table(caption, [metric_label(name, metrics).text for name in names], rows)


def _best(metric: Metric, values: Sequence[Value]) -> set[float | int]:
    """The best of at least two different values; none where a metric has no better."""
    finite = {value for value in values if value is not None and math.isfinite(value)}
    if metric.better == "" or len(finite) < 2:
        return set()
    if metric.better == "one":
        return {min(finite, key=lambda value: abs(value - 1))}
    if metric.better == "higher":
        return {max(finite)}
    # A distance below zero is the noise of an estimator without bias: as good as zero, not better.
    least = max(min(finite), 0)
    best = {value for value in finite if value <= least}
    return best if len(best) < len(finite) else set()


def reason_of(reasons: Mapping[str, str], *keys: str) -> str:
    """The reason under the first of the keys that has one; else empty."""
    return next((reasons[key] for key in keys if key in reasons), "")
