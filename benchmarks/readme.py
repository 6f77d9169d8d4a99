"""Write the tables of README.md from the results beside this file: `python benchmarks/readme.py`.

A table stands between `<!-- table NAME -->` and `<!-- /table -->`; what lies between is made anew from
benchmarks/results/*.json, so that no number of a table is typed by hand. tests/test_readme.py holds the two together.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = Path(__file__).parent / "results"
LEVEL = 0.05
BLOCK = re.compile(r"(?s)(?P<open><!-- table (?P<name>[\w-]+) -->\n).*?(?P<close><!-- /table -->)")

HEAD_ARMS = {
    "first stage": ("first stage",),
    "teacher": ("teacher", "teacher dl20.teacher.rankvicuna-over-bm25"),
    "clone": ("clone",),
    "**refined** (exact, log)": ("refined",),
    "labels: LambdaRank": ("labels",),
    "labels: LambdaRank, tempered": ("labels tempered",),
    "labels: RankNet": ("labels rank_net",),
    "labels: softmax": ("labels softmax",),
    "refined without a clone": ("refined only",),
    "refined by RLOO": ("refined rloo",),
    "refined by GRPO": ("refined grpo",),
    "longer clone": ("longer clone",),
    "random reward": ("random reward",),
    "shuffled reward": ("shuffled reward",),
    "inverted reward": ("inverted reward",),
}
"""Row -> the arm's names in the results."""
HEAD_SETS = {
    "SciFact": "claim-a-scifact",
    "code search": "claim-a-code",
    "forum answers": "claim-a-semeval",
    "TREC DL20": "claim-a-trec-dl",
}


def result(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf8"))


def decimal(value: float) -> str:
    """The number with three places and no zero before the point."""
    return f"{value:.3f}".replace("0.", ".", 1)


def with_spread(cell: Mapping[str, Any]) -> str:
    """A mean, with its standard deviation over seeds where there are several."""
    spread = cell.get("spread")
    return decimal(cell["mean"]) + ("" if spread is None else f" ± {decimal(spread)}")


def row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def lines_of(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([row(titles), row(["---"] * len(titles)), *map(row, rows)]) + "\n"


def head() -> str:
    """A head on frozen vectors: every arm on four collections."""
    tables = {title: result(name)["table"] for title, name in HEAD_SETS.items()}
    primary = next(iter(tables.values()))["measures"][0]
    cells = {
        (label, title): next((table["arms"][arm][primary] for arm in names if arm in table["arms"]), None)
        for label, names in HEAD_ARMS.items()
        for title, table in tables.items()
    }

    def shown(label: str, title: str) -> str:
        cell = cells[label, title]
        return "" if cell is None else with_spread(cell)

    titles = ["arm", *(f"{title}, {table['queries']} queries" for title, table in tables.items())]
    return lines_of(titles, [[label, *(shown(label, title) for title in tables)] for label in HEAD_ARMS])


def bench() -> str:
    """The suite of `make benchmark`: sets down, arms across, marked where they differ from their first stage."""
    results = result("bench-local")["results"]
    primary = results["measures"][0]
    arms = list(results["means"])
    tested = {
        (row, c["arm"]): c
        for row, comparisons in {**results["by_set"], "": results["comparisons"]}.items()
        for c in comparisons
        if c["measure"] == primary and c["arm"].endswith(f" on {c['against']}")
    }

    def shown(row: str, arm: str, mean: float) -> str:
        c = tested.get((row, arm))
        real = c is not None and c["p_holm"] is not None and c["p_holm"] < LEVEL and not c["low"] <= 0 <= c["high"]
        return decimal(mean) + (f" {'▲' if c['difference'] > 0 else '▼'}" if real else "")

    rows = [
        [f"{name}, {table['queries']}", *(shown(name, arm, table["arms"][arm][primary]["mean"]) for arm in arms)]
        for name, table in results["sets"].items()
    ]
    means = [shown("", arm, results["means"][arm][primary]["mean"]) for arm in arms]
    return lines_of(["set, queries", *arms], [*rows, [f"mean over {len(results['counted'])} sets", *means]])


def peers() -> str:
    """Training beside sentence-transformers: the same lists, steps and backbone; the seconds of a step beside it."""
    found = result("peers")
    tables = found["equal steps"]
    titles = {
        "semeval": "forum answers",
        "scifact": "SciFact",
        "cosqa": "code search (CoSQA)",
        "all collections": "all",
    }
    first = next(iter(tables.values()))
    costs = found["step"]["semeval"]

    def shown(name: str, arm: str) -> str:
        cell = tables[name]["arms"].get(arm)
        return "" if cell is None else with_spread(cell[tables[name]["measures"][0]])

    def cost(arm: str) -> str:
        return f"{costs[arm]['processor_seconds']:.2f}" if arm in costs else ""

    rows = [
        [re.sub("^st ", "theirs: ", arm), *(shown(name, arm) for name in titles), cost(arm)] for arm in first["arms"]
    ]
    heads = [f"{title}, {tables[name]['queries']} queries" for name, title in titles.items()]
    return lines_of(["arm", *heads, "s a step"], rows)


TABLES: dict[str, Callable[[], str]] = {"head": head, "bench": bench, "peers": peers}


def written(text: str) -> str:
    """The README with every table made anew."""

    def table(found: re.Match[str]) -> str:
        if found["name"] not in TABLES:
            sys.exit(f"README.md: there is no table {found['name']!r}; there are {', '.join(TABLES)}")
        return f"{found['open']}\n{TABLES[found['name']]()}\n{found['close']}"

    return BLOCK.sub(table, text)


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf8")), encoding="utf8")
