"""One HTML file that tells what a run found: the answer first, then what it rests on.

It is made from the files of a run folder alone: `table.json` (needed), `changes.json`, `metrics.jsonl` and
`summary.json` (each optional; the report says which are absent). The page refers to nothing outside itself, and its
content security policy forbids it to: texts come from users' documents and are escaped, and only the page's own
script, named by its hash, may run.

Horizontal places are percentages, so that drawings stretch with the page while their letters keep their size.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rerank.errors import DataError, InputError, NotFound
from rerank.evaluation.changes import Change, changes_from_json
from rerank.evaluation.measures import parse_measure
from rerank.evaluation.tables import EQUAL, Table, decimal, p_value, signed

logger = logging.getLogger("rerank.evaluation")

_MOST_BARS = 1000
"""Queries drawn in the plot of gains and losses; of more, the largest gains and losses."""
_MOST_POINTS = 240
"""Points of a curve; of more, neighbours are averaged."""


class Axis(NamedTuple):
    """A linear axis over round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]
    places: int
    """Decimal places that its ticks need."""

    def at(self, value: float) -> float:
        """The place of `value` in percent of the axis' length."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)


class Dot(NamedTuple):
    """One arm in the dot plot; places in percent."""

    arm: str
    mean: float
    x: float
    left: float
    right: float


class Bar(NamedTuple):
    """One query in the plot of gains and losses; places and sizes in percent."""

    query_id: str
    difference: float
    x: float
    width: float
    y: float
    height: float
    change: int | None
    """The number of the query's details, where there are any."""


class Gains(NamedTuple):
    """The plot of gains and losses."""

    bars: tuple[Bar, ...]
    """The largest gain first, the largest loss last."""
    top: float
    bottom: float
    zero: float
    """The height of the line of no change, in percent from the top."""
    counts: tuple[int, int, int]
    """All queries that gained, did not change, and lost."""


class Curve(NamedTuple):
    """One quantity over the steps of one stage."""

    title: str
    x: Axis
    y: Axis
    points: tuple[tuple[float, float], ...]
    """In percent, the vertical ones from the top."""
    last: float
    dots: bool


def write_report(folder: Path) -> Path:
    """The path of the `report.html` written into the run folder `folder`."""
    folder = Path(folder)
    if not (folder / "table.json").is_file():
        raise NotFound(
            f"{folder / 'table.json'} does not exist, and the report is made of it; "
            "evaluate the run first, or give the folder of another run"
        )
    try:
        table = Table.from_json(_read_json(folder / "table.json"))
    except InputError as error:
        raise (
            error if isinstance(error, DataError) else DataError.at(folder / "table.json", None, str(error))
        ) from error
    changes, pair = _read_changes(folder / "changes.json", table)
    summary = _read_json(folder / "summary.json")
    page = _render(
        title=str(summary.get("title") or folder.resolve().name),
        table=table,
        column_best={m: max(cells[m].mean for cells in table.arms.values()) for m in table.measures},
        axis=_dot_axis(table),
        dots=dots(table),
        pair=pair,
        gains=gains(_differences(table, pair), {c.query_id: i for i, c in enumerate(changes)}),
        changes=changes,
        stages=stages(_read_jsonl(folder / "metrics.jsonl"), table.measures[0]),
        summary=summary,
        absent=[n for n in ("summary.json", "changes.json", "metrics.jsonl") if not (folder / n).is_file()],
    )
    path, unfinished = folder / "report.html", folder / "report.html.partial"
    # A text may hold a lone surrogate, which UTF-8 cannot write; it is shown as its escape.
    unfinished.write_bytes(page.encode("utf-8", errors="backslashreplace"))
    os.replace(unfinished, path)
    return path


def round_axis(low: float, high: float, steps: int = 5) -> Axis:
    """The axis with about `steps` round ticks that covers `low` to `high`."""
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    places = max(0, -math.floor(math.log10(step) + 1e-9), 3 if step == 2.5 * power and power < 0.1 else 0)
    return Axis(first * step, last * step, tuple(round(i * step, 10) for i in range(first, last + 1)), places)


def dots(table: Table) -> list[Dot]:
    """The arms of the dot plot, in the table's order."""
    axis, primary = _dot_axis(table), table.measures[0]
    cells = {arm: by_measure[primary] for arm, by_measure in table.arms.items()}
    return [
        Dot(arm, cell.mean, axis.at(cell.mean), axis.at(cell.low), axis.at(cell.high)) for arm, cell in cells.items()
    ]


def gains(differences: Mapping[str, float], detailed: Mapping[str, int]) -> Gains | None:
    """The plot of `differences`; `detailed` maps queries with details to their number. None without differences."""
    if not differences:
        return None
    gained, lost = sum(d > EQUAL for d in differences.values()), sum(d < -EQUAL for d in differences.values())
    ranked = sorted(differences.items(), key=lambda item: -item[1])
    if len(ranked) > _MOST_BARS:
        ranked = ranked[: _MOST_BARS // 2] + ranked[-_MOST_BARS // 2 :]
    top, bottom = max(ranked[0][1], 0.0), min(ranked[-1][1], 0.0)
    if top - bottom < EQUAL:
        top, bottom = 0.5, -0.5
    span, slot = top - bottom, 100 / len(ranked)
    zero, width = 100 * top / span, slot * (0.8 if len(ranked) < 300 else 1)
    drawn = []
    for i, (query_id, difference) in enumerate(ranked):
        height = max(100 * abs(difference) / span, 0.4)
        y = zero - height if difference > 0 else zero
        x, w, y, height = (round(v, 3) for v in (i * slot, width, y, height))
        drawn.append(Bar(query_id, difference, x, w, y, height, detailed.get(query_id)))
    counts = (gained, len(differences) - gained - lost, lost)
    return Gains(tuple(drawn), top, bottom, round(zero, 3), counts)


def stages(records: Iterable[Mapping[str, Any]], primary: str) -> list[tuple[str, list[Curve]]]:
    """(title, curves) of each model's stages, in the order in which they began."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        title = " · ".join(str(record[k]) for k in ("model", "stage") if record.get(k) is not None)
        grouped.setdefault(title or "training", []).append(record)
    grouped = {title: _by_step(group) for title, group in grouped.items()}
    found = []
    for title, group in grouped.items():
        measured = _dev_measure(group, primary)
        named = [("loss", "loss"), *([(measured, f"{measured} on dev")] if measured else [])]
        curves = [c for key, label in named if (c := curve(group, key, label)) is not None]
        if curves:
            found.append((title, curves))
    return found


def _by_step(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that have a step, in its order; a step that a resumed run repeated counts as it last was."""
    last = {float(r["step"]): r for r in records if _is_number(r.get("step"))}
    return [last[step] for step in sorted(last)]


def curve(records: Sequence[Mapping[str, Any]], key: str, title: str) -> Curve | None:
    """The curve of `key` by step; None where no record has it."""
    known = [(float(r["step"]), float(r[key])) for r in records if _is_number(r.get("step")) and _is_number(r.get(key))]
    if not known:
        return None
    size = math.ceil(len(known) / _MOST_POINTS)
    blocks = [known[i : i + size] for i in range(0, len(known), size)]
    means = [(sum(s for s, _ in b) / len(b), sum(v for _, v in b) / len(b)) for b in blocks]
    x = round_axis(min(s for s, _ in means), max(s for s, _ in means), steps=3)
    y = round_axis(min(v for _, v in means), max(v for _, v in means), steps=3)
    points = tuple((x.at(s), round(100 - y.at(v), 3)) for s, v in means)
    return Curve(title, x, y, points, known[-1][1], dots=len(means) <= 24)


def _dev_measure(records: Sequence[Mapping[str, Any]], primary: str) -> str | None:
    """The primary measure where the stage recorded it, else the first measure that it did record."""
    keys = list(dict.fromkeys(k for r in records for k in r))
    return primary if primary in keys else next((k for k in keys if _is_measure(k)), None)


def _is_measure(key: str) -> bool:
    try:
        return str(parse_measure(key)) == key
    except InputError:
        return False


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _dot_axis(table: Table) -> Axis:
    cells = [by_measure[table.measures[0]] for by_measure in table.arms.values()]
    ends = [v for c in cells for v in (c.low, c.high, c.mean) if math.isfinite(v)]
    return round_axis(min(ends), max(ends))


def _read_changes(path: Path, table: Table) -> tuple[list[Change], tuple[str, str] | None]:
    """The recorded changes with their (before, after); without any, the arms of the first comparison."""
    content = _read_json(path)
    try:
        changes = changes_from_json(content)
    except InputError as error:
        raise DataError.at(path, None, str(error)) from error
    if changes:
        return changes, (str(content.get("before", "before")), str(content.get("after", "after")))
    return [], next(((c.against, c.arm) for c in table.comparisons), None)


def _differences(table: Table, pair: tuple[str, str] | None) -> dict[str, float]:
    """query id -> what it gained on the primary measure from one arm to the other; empty where that is not known."""
    if pair is None or not all(arm in table.per_query for arm in pair):
        return {}
    old, new = (table.per_query[arm][table.measures[0]] for arm in pair)
    return {q: new[q] - old[q] for q in old if q in new}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where the file is absent."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError.at(path, getattr(error, "lineno", None), f"this is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError.at(path, None, f"a JSON object is needed, this is a {type(content).__name__}")
    return content


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a file; lines that a killed run left unfinished are left out and counted."""
    if not path.is_file():
        return []
    # Unlike a table, a log has nothing that depends on every line: what can be read is worth showing.
    records, broken = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            broken.append(number)
    if broken:
        lines = f"{len(broken)} line{'s' if len(broken) > 1 else ''}"
        logger.warning("%s:%d: %s left out, from here on: no JSON object", path, broken[0], lines)
    return records


def _render(**content: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(decimal=decimal, signed=signed, p_value=p_value, duration=_duration, csp_hash=_csp_hash)
    return environment.get_template("report.html.j2").render(**content)


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
