"""A suite, concluded: what all sets found becomes one table, in every form, beside what it was made of.

    OUT/results.json  results.md  results.tex  results.csv  probes.csv     the table over the sets (`evaluation.across`)
    OUT/summary.json  report.html                                          of what, with what, how long; to look at
    OUT/failed.json                                                        the last attempt, where it measured nothing

Results and the summary that tells of them are a pair: both are made before the first is written.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rerank.bench.plan import DAMAGED, Failure, Found, Plan, published_of
from rerank.bench.suites import Suite
from rerank.bench.systems import ModelChoice
from rerank.errors import Unfinished
from rerank.evaluation.across import Across, across
from rerank.evaluation.measures import parse_measure
from rerank.experiment.stamp import commit, hardware, versions
from rerank.experiment.workspace import write_json, write_text
from rerank.report.writing import write_report

RESULTS, SUMMARY, FAILED = "results.json", "summary.json", "failed.json"
PROBES = "probes.csv"
WRITTEN = (RESULTS, "results.md", "results.tex", "results.csv", PROBES, SUMMARY, "report.html", FAILED)
"""Files of ours in OUT."""
UNORDERED = ("R", "P", "Success", "Judged")
"""Measures that see which documents are above their cutoff, not their order."""


def conclude(
    suite: Suite,
    models: Sequence[ModelChoice],
    plan: Plan,
    found: Mapping[str, Found],
    out: Path,
    command: str,
    began: float,
) -> Across:
    """The table over the sets, written; an error where something is missing from it."""
    measured = {name: one for name, one in found.items() if one.table is not None}
    failures = [failure for one in found.values() for failure in one.failures]
    summary = _summary(suite, models, plan, found, _notes(suite, plan, found, out), command, began)
    if not measured:  # the results that are there, if any, keep the summary that tells of them
        write_json(out / FAILED, summary | {"kind": "failed bench"})
        raise Unfinished(_unfinished(suite, failures, out), None)
    table = _across(suite, plan, found)
    if failures:
        _keep_earlier(out, table, plan)
    _write(out, table, summary)
    report = write_report(out)
    if plan.console is not None:
        plan.console.print(table.to_rich(plan.console.width))
    for sentence in table.verdict():
        plan.say(f"  {sentence}")
    plan.say(f"  {report}")
    if failures:
        raise Unfinished(_unfinished(suite, failures, out), table)
    return table


def _write(out: Path, table: Across, summary: Mapping[str, Any]) -> None:
    """Nothing; results and the summary that tells of them, all made before the first is written."""
    texts = {"results.md": table.to_markdown() + _footer(summary), "results.tex": table.to_latex()}
    texts["results.csv"] = table.to_csv()
    texts |= {PROBES: table.probes_to_csv()} if any(table.probes.values()) else {}
    results = table.to_json()
    write_json(out / RESULTS, results)
    write_json(out / SUMMARY, summary)
    for name, text in texts.items():
        write_text(out / name, text)
    (out / FAILED).unlink(missing_ok=True)


def _footer(summary: Mapping[str, Any]) -> str:
    """What the Markdown says of how it was made; the other files have it in summary.json beside them."""
    lines = ["", "## How it was made", ""]
    lines += [f"    {summary['command']}", ""] if summary["command"] else []
    limited = f", {summary['limit']} queries of each set" if summary["limit"] else ""
    lines += [f"- {summary['depth']} candidates a query{limited}; {summary['date']}, commit {summary['commit']}"]
    lines += [
        f"- {name}: `{told['where']}`" + (f" (given {told['reads']})" if told["reads"] else "")
        for name, told in summary["models"].items()
    ]
    prints = ", ".join(f"{name} {data['fingerprint']}" for name, data in summary["data"].items())
    return "\n".join([*lines, f"- fingerprints of the data: {prints}", ""])


def _keep_earlier(out: Path, table: Across, plan: Plan) -> None:
    """Nothing; earlier results that have what `table` lacks are kept beside it, the whole ones rather than later."""
    earlier, beside = out / RESULTS, out / "results.before.json"
    if not earlier.is_file():
        return
    try:
        before = Across.from_json(json.loads(earlier.read_text(encoding="utf8")))
        whole = not json.loads((out / SUMMARY).read_text(encoding="utf8"))["missing"]
    except DAMAGED:  # then nobody can say what they are
        return
    here = {(name, arm) for name, t in table.tables.items() for arm in t.arms}
    lost = [(name, arm) for name, t in before.tables.items() for arm in t.arms if (name, arm) not in here]
    if not lost or (beside.exists() and not whole):
        return
    for path in (earlier, out / SUMMARY):
        write_text(path.with_name(f"{path.stem}.before.json"), path.read_text(encoding="utf8"))
    plan.say(f"  the earlier results had more (such as {lost[0][0]}, {lost[0][1]}): they are kept as {beside}")


def _across(suite: Suite, plan: Plan, found: Mapping[str, Found]) -> Across:
    sets = {s.name: s for s in suite.sets}
    measured = {name: one for name, one in found.items() if one.table is not None}
    return across(
        suite.name,
        {name: one.table for name, one in measured.items() if one.table is not None},
        groups={name: sets[name].group for name in measured},
        ties={name: one.ties for name, one in measured.items()},
        speed={name: one.speed for name, one in measured.items()},
        published={name: published_of(sets[name], plan) for name in measured},
        probes={name: one.probes for name, one in measured.items()},
        absent={name: "; ".join(map(_told, one.failures)) for name, one in found.items() if name not in measured},
    )


def _told(failure: Failure) -> str:
    return f"{failure.arm}: {failure.problem}" if failure.arm else failure.problem


def _unfinished(suite: Suite, failures: Sequence[Failure], out: Path) -> str:
    told = _by_problem(failures)
    n, of = len({f.set for f in failures}), len(suite.sets)
    whole = f"{n} of {of} set{'' if of == 1 else 's'} of {suite.name} {'is' if n == 1 else 'are'} not complete"
    again = "the same command goes on with what is missing"
    if not all(f.passing for f in failures):
        again = "mend what is said here, then give the same command again: it goes on with what is missing"
    return "\n  ".join([f"{whole} (what was measured is in {out}; {again}):", *told])


def _by_problem(failures: Sequence[Failure]) -> list[str]:
    """One line for each kind of problem: the first of its kind whole, the others by name."""
    kinds: dict[str, list[Failure]] = {}
    sets = "|".join(re.escape(name) for name in {failure.set for failure in failures})
    for failure in failures:
        words = re.sub(rf"'[^']*'|\d+|\b({sets})\b", "", failure.problem)
        kinds.setdefault(words[:100], []).append(failure)
    lines = []
    for first, *others in kinds.values():
        names = ", ".join(dict.fromkeys(f"{f.set}{f', {f.arm}' if f.arm else ''}" for f in others))
        lines.append(f"{first.set}{f', {first.arm}' if first.arm else ''}: {first.problem}")
        lines += [f"the same of {names}"] if others else []
    return lines


def _summary(
    suite: Suite,
    models: Sequence[ModelChoice],
    plan: Plan,
    found: Mapping[str, Found],
    notes: list[str],
    command: str,
    began: float,
) -> dict[str, Any]:
    identities = {system.name: system.identity() for system in plan.systems}
    reads = {system.name: system.reads for system in plan.systems}
    return {
        "kind": "bench",
        "title": suite.name,
        "command": command,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": versions(),
        "hardware": hardware(),
        "commit": commit(),
        "data": {name: one.collection for name, one in found.items() if one.collection},
        "models": {c.name: {"where": c.where, "identity": identities[c.name], "reads": reads[c.name]} for c in models},
        "first_stages": [c.name for c in plan.first_stages],
        "encoder": plan.encoder,
        "depth": plan.depth,
        "limit": plan.limit,
        "probes": list(plan.probes),
        "notes": notes,
        "missing": [failure._asdict() for one in found.values() for failure in one.failures],
        "seconds": {name: dict(one.table.seconds) for name, one in found.items() if one.table is not None},
        "seconds_total": round(time.monotonic() - began, 1),
    }


def _notes(suite: Suite, plan: Plan, found: Mapping[str, Found], out: Path) -> list[str]:
    """What is to be said of the results."""
    folders = sorted(p.name for p in (out / "sets").glob("*") if p.is_dir() and p.name not in found)
    return [
        *([suite.note] if suite.note else []),
        *_too_deep(plan),
        *(f"{name}: {note}" for name, one in found.items() for note in one.notes),
        *([f"not of these results, though in the folder sets: {', '.join(folders)}"] if folders else []),
    ]


def _too_deep(plan: Plan) -> list[str]:
    """What is to be said of measures that look at all candidates, or deeper than there are any."""
    chosen = [parse_measure(m) for m in plan.measures]
    deeper = [str(m) for m in chosen if (m.cutoff or 0) > plan.depth]
    said = [f"{', '.join(deeper)}: there are {plan.depth} candidates a query, so this is what they reach"]
    blind = [str(m) for m in chosen if m.name in UNORDERED and (m.cutoff or 0) >= plan.depth]
    same = [f"{', '.join(blind)}: of {plan.depth} candidates a query, no reordering can change it"]
    return [*(said if deeper else []), *(same if blind else [])]
