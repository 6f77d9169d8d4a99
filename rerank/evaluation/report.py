"""One HTML file that tells what a run found: the answer first, then what it rests on.

It is made from the files of a run folder alone: `table.json` (needed), `diagnosis.json`, `calibration.json`,
`changes.json`, `metrics.jsonl` and `summary.json` (each optional; the report says which are absent). The page refers to
nothing outside itself, and its content security policy forbids it to: texts come from users' documents and are
escaped, and only the page's own script, named by its hash, may run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rerank.errors import DataError, NotFound, RerankError
from rerank.evaluation.changes import Change, changes_from_json
from rerank.evaluation.drawing import dot_axis, dots, gains, stages
from rerank.evaluation.findings import audits, calibrations, diagnoses, forests
from rerank.evaluation.tables import Table
from rerank.evaluation.wording import decimal, p_value, signed

Found = TypeVar("Found")

logger = logging.getLogger("rerank.evaluation")

DAMAGED = (TypeError, KeyError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What reading a file whose values are of other kinds than they should be ends in."""

FILES = ("summary.json", "diagnosis.json", "calibration.json", "changes.json", "metrics.jsonl")
"""What the report shows beside its table, each file where it is there."""
FIRST_SENTENCES = 6
"""Sentences of the verdict that stand at the top; the others are a click away."""

MOST_STAGES = 8
"""Training stages whose curves are shown at once; the others likewise."""


def write_report(folder: Path) -> Path:
    """The path of the `report.html` written into the run folder `folder`."""
    folder = Path(folder)
    if not (folder / "table.json").is_file():
        raise NotFound(
            f"{folder / 'table.json'} does not exist, and the report is made of it; "
            "evaluate the run first, or give the folder of another run"
        )
    try:
        page = _page(folder)
    except RerankError:
        raise
    except DAMAGED as error:
        raise DataError.at(folder, None, _damage(error)) from error
    path, unfinished = folder / "report.html", folder / "report.html.partial"
    # A text may hold a lone surrogate, which UTF-8 cannot write; it is shown as its escape.
    unfinished.write_bytes(page.encode("utf-8", errors="backslashreplace"))
    os.replace(unfinished, path)
    return path


def _page(folder: Path) -> str:
    """The report as HTML."""
    table = _read(folder / "table.json", Table.from_json)
    changes, pair = _read_changes(folder / "changes.json", table)
    summary = _read_json(folder / "summary.json")
    return _render(
        title=str(summary.get("title") or folder.resolve().name),
        table=table,
        column_best={m: max(cells[m].mean for cells in table.arms.values()) for m in table.measures},
        said=table.said(),
        first_sentences=FIRST_SENTENCES,
        most_stages=MOST_STAGES,
        seeds_told=seeds_told(table),
        axis=dot_axis(table),
        dots=dots(table),
        forests=forests(table, _groups(summary)),
        audits=_read(folder / "summary.json", lambda content: audits(content.get("audit"))),
        diagnoses=_read(folder / "diagnosis.json", diagnoses),
        calibrations=_read(folder / "calibration.json", calibrations),
        pair=pair,
        gains=gains(_differences(table, pair), {c.query_id: i for i, c in enumerate(changes)}),
        changes=changes,
        stages=stages(_read_jsonl(folder / "metrics.jsonl"), table.measures[0]),
        summary=summary,
        absent=[name for name in FILES if not (folder / name).is_file()],
    )


def _damage(error: Exception) -> str:
    """What a message says of values that the report could not be made of."""
    if isinstance(error, RerankError):
        return str(error)
    problem = f"a value is missing or of another kind than the report needs ({type(error).__name__}: {error})"
    return f"{problem}; evaluate the run again"


def seeds_told(table: Table) -> str:
    """The sentence that says over how many seeds each arm's numbers are means."""
    by_count: dict[int, list[str]] = {}
    for arm in table.arms:
        by_count.setdefault(table.seeds.get(arm, 1), []).append(arm)
    single = by_count.pop(1, [])
    if not by_count:
        return "Each arm is a single run."
    most = max(by_count, key=lambda n: len(by_count[n]))
    others = [f"{', '.join(arms)} over {n}" for n, arms in by_count.items() if n != most]
    alone = [f"{', '.join(single)} {'are single runs' if len(single) > 1 else 'is a single run'}"] if single else []
    return "; ".join([f"Numbers are means over {most} seeds", *others, *alone]) + "."


def _groups(summary: Mapping[str, Any]) -> dict[str, Any]:
    groups = summary.get("groups")
    return dict(groups) if isinstance(groups, Mapping) else {}


def _read(path: Path, found_in: Callable[[dict[str, Any]], Found]) -> Found:
    """What `found_in` makes of the file; its complaint, where there is one, names the file."""
    content = _read_json(path)
    try:
        return found_in(content)
    except DAMAGED as error:
        raise DataError.at(path, None, _damage(error)) from error


def _read_changes(path: Path, table: Table) -> tuple[list[Change], tuple[str, str] | None]:
    """The recorded changes with their (before, after); without any, the arms of the first comparison."""
    content, changes = _read(path, lambda content: (content, changes_from_json(content)))
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
    except (ValueError, RecursionError) as error:
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
    environment.filters.update(
        decimal=decimal, signed=signed, p_value=p_value, duration=_duration, csp_hash=_csp_hash, whole=_whole
    )
    try:
        return environment.get_template("report.html.j2").render(**content)
    except jinja2.UndefinedError as error:
        raise ValueError(str(error)) from error


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()


def _whole(text: str) -> str:
    """The text with its p-values kept from breaking across lines."""
    return text.replace("p < ", "p\u00a0<\u00a0").replace("p = ", "p\u00a0=\u00a0")


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
