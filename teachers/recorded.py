"""A recorded teacher: the orderings that some system left in a run, a TREC run file or RankLLM JSON.

Recordings seldom fit exactly: a listwise LLM repeats, forgets or invents candidates, and a run file may reach beyond
the candidates of today. What fits is kept in the recorded order; what does not is counted and said once at the end.
The scores of a recording are not kept: most files hold `1000 - rank`, which says no more than the order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

from rerank.errors import InputError
from rerank.types import CandidateList, Ordering, Run

logger = logging.getLogger("rerank.teachers.recorded")


@final
class Recorded:
    """Orders as a run says; `run_or_path` is a `Run`, or a TREC run file, or RankLLM JSON (.json, .jsonl)."""

    def __init__(self, run_or_path: Run | Path | str, name: str | None = None) -> None:
        if isinstance(run_or_path, Run):
            self.run = run_or_path
        elif isinstance(run_or_path, str | Path):
            self.run = _read(Path(run_or_path))
        else:
            raise InputError(f"a recording is a Run or the path of a run file, got {type(run_or_path).__name__}")
        self.name = name or self.run.name

    def __call__(self, lists: Iterable[CandidateList]) -> Iterator[Ordering]:
        """One ordering for each list of which the recording ranks two candidates or more."""
        seen: Counter[str] = Counter()
        for candidates in lists:
            seen["lists"] += 1
            recorded = self.run.doc_ids(candidates.query_id)
            wanted = set(candidates.doc_ids)
            kept = tuple(dict.fromkeys(d for d in recorded if d in wanted))
            seen["outside"] += sum(d not in wanted for d in recorded)
            seen["repeated"] += sum(d in wanted for d in recorded) - len(kept)
            if len(kept) < 2:
                seen["short" if candidates.query_id in self.run.rankings else "absent"] += 1
                continue
            seen["unranked"] += len(wanted) - len(kept)
            yield Ordering(candidates.query_id, kept, self.name)
        self._tell(seen)

    def _tell(self, seen: Counter[str]) -> None:
        left_out = seen["absent"] + seen["short"]
        if any(n for what, n in seen.items() if what != "lists"):
            lost = left_out + seen["outside"] + seen["repeated"]
            logger.log(
                logging.WARNING if lost else logging.INFO,
                "teacher %r: %d of %d lists left out (%d not recorded, %d with fewer than two recorded candidates); "
                "%d recorded ids are no candidates, %d are repeats, %d candidates of ordered lists are unranked",
                *(self.name, left_out, seen["lists"], seen["absent"], seen["short"]),
                *(seen["outside"], seen["repeated"], seen["unranked"]),
            )


def _read(path: Path) -> Run:
    """The run of a file, by its ending."""
    from rerank.data.formats import read_rankllm
    from rerank.data.trec import read_run

    return read_rankllm(path)[1] if {".json", ".jsonl"} & set(path.suffixes) else read_run(path)
