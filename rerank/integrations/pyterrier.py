"""A reranker as a step of PyTerrier pipelines.

    from rerank.integrations.pyterrier import RerankTransformer

    reranked = first_stage % 100 >> RerankTransformer("runs/quickstart/model/light")
    reranked(topics)

In: the columns qid, query, docno and text (`pt.text.get_text(index, "text")` adds the texts). Out: the same rows, best
first within each query, with score and rank; other columns are kept. Scores are logits, as in all adapters for
evaluation. No Java is started here; PyTerrier's own retrievers need it (`pip install pyterrier[java]`). Extra:
`pyterrier`.

A model that was trained with first-stage scores gets them from the frame: `first_stage="bm25"` says that the column
`score` is that of bm25, `{"bm25": "score", "dense": "dense_score"}` that dense's is another column.

Documents with equal logits stay in the order of the `rank` column, where the frame has one, else of its rows. PyTerrier
hands scores to trec_eval, which would order them by docno; so equal scores come out one float32 apart, and
`pt.Experiment` measures the ranking that the rank column shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from rerank.errors import InputError, need
from rerank.given import checked_text
from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import reranker_of
from rerank.ties import apart

if TYPE_CHECKING:
    import pandas as pd
    import pyterrier as pt

    from rerank.reranker import Reranker
else:
    pt = need("pyterrier", "pyterrier")


@final
class RerankTransformer(pt.Transformer):
    """Scores all documents of a frame in one call of the engine and ranks them anew.

    `model` is a folder, an id on the hub or a `rerank.Reranker`; `text_field` names the column with the documents'
    texts, `first_stage` those with first-stage scores; `how` is what `Reranker.from_pretrained` takes (device,
    precision, max_length, ...).
    """

    # Without a help_url, PyTerrier would fetch the index of its own documentation to look for this class.
    schematic: ClassVar[dict[str, str | None]] = {"label": "Rerank", "help_url": None}

    def __init__(
        self,
        model: str | Path | Reranker,
        text_field: str = "text",
        first_stage: str | Mapping[str, str] | None = None,
        **how: Any,
    ) -> None:
        if not isinstance(text_field, str) or not text_field:
            raise InputError(
                f"text_field must name the column that holds the texts, such as 'text', not {text_field!r}"
            )
        super().__init__()
        self.first_stage = FirstStage(first_stage, "give first_stage='NAME', or {'NAME': 'COLUMN', ...}")
        self.reranker = reranker_of(model, **how)
        self.first_stage.check(self.reranker.wants)
        self.text_field = text_field

    def __repr__(self) -> str:
        return f"RerankTransformer({self.reranker!r})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The rows of `inp` with score and rank, queries in the order in which they came."""
        import numpy as np

        needed = ["qid", "query", "docno", self.text_field, *self.first_stage.places.values()]
        pt.validate.columns(inp, includes=needed, context=self)
        self._check_columns(inp)
        groups = _groups(inp)
        self._check(inp, groups)
        texts, queries = inp[self.text_field].tolist(), inp["query"].tolist()
        questions = [(queries[rows[0]], [texts[row] for row in rows]) for rows in groups]
        stages = self._first_stages(inp, groups)
        order: list[int] = []
        scores: list[float] = []
        ranks: list[int] = []
        for rows, hits in zip(groups, self.reranker.rank_many(questions, first_stages=stages), strict=True):
            order += [rows[hit.index] for hit in hits]
            scores += apart([hit.score for hit in hits])
            ranks += range(pt.model.FIRST_RANK, pt.model.FIRST_RANK + len(hits))
        rest = inp.drop(columns=["score", "rank"], errors="ignore").iloc[order].reset_index(drop=True)
        return rest.assign(score=np.array(scores, dtype=np.float64), rank=np.array(ranks, dtype=np.int64))

    def _first_stages(self, inp: pd.DataFrame, groups: list[list[int]]) -> list[dict[str, list[float]]] | None:
        """For each query, retriever -> the score of each of its rows; None where the model is given none."""

        def column(name: str) -> list[Any]:
            return [None if missing else x for x, missing in zip(inp[name].tolist(), inp[name].isna(), strict=True)]

        found = self.first_stage.scores(self.reranker.wants, column)
        if found is None:
            return None
        return [{name: [scores[row] for row in rows] for name, scores in found.items()} for rows in groups]

    def _check_columns(self, inp: pd.DataFrame) -> None:
        """InputError where a column that is read is there twice."""
        names = list(inp.columns)
        for name in ("qid", "query", "docno", "rank", self.text_field, *self.first_stage.places.values()):
            if names.count(name) > 1:
                raise InputError(f"the frame has {names.count(name)} columns {name!r}: rename or drop all but one")

    def _check(self, inp: pd.DataFrame, groups: list[list[int]]) -> None:
        """InputError where a row has no text, or the rows of one qid have different queries."""
        qids, docnos = inp["qid"].tolist(), inp["docno"].tolist()
        queries, texts = inp["query"].tolist(), inp[self.text_field].tolist()
        for rows in groups:
            for row in rows:
                where = f"qid {qids[row]!r}, docno {docnos[row]!r}"
                if not isinstance(queries[row], str):
                    raise InputError(f"{where}: the query must be a text, not {type(queries[row]).__name__}")
                if queries[row] != queries[rows[0]]:
                    both = f"{queries[rows[0]]!r} and {queries[row]!r}"
                    raise InputError(f"{where}: one qid has two queries, {both}; give each query its own qid")
                if not isinstance(texts[row], str):
                    kind = type(texts[row]).__name__
                    raise InputError(
                        f"{where}: column {self.text_field!r} must hold a text, not {kind}; add the texts with "
                        f"pt.text.get_text(index, {self.text_field!r}), or put '' where a document has none"
                    )
                checked_text(queries[row], f"{where}: the query")
                checked_text(texts[row], f"{where}: the text")


def _groups(inp: pd.DataFrame) -> list[list[int]]:
    """The places of each qid's rows, by their rank where the frame has ranks; queries as they came."""
    found: dict[Any, list[int]] = {}
    for row, qid in enumerate(inp["qid"].tolist()):
        found.setdefault(qid, []).append(row)
    if "rank" not in inp.columns:
        return list(found.values())
    places = [_place(rank, missing) for rank, missing in zip(inp["rank"].tolist(), inp["rank"].isna(), strict=True)]
    return [sorted(rows, key=places.__getitem__) for rows in found.values()]


def _place(rank: Any, missing: bool) -> float:
    """The rank as a number; one that is missing, as after an outer join, comes last."""
    try:
        place = math.inf if missing else float(rank)
    except (TypeError, ValueError):
        place = math.nan
    if math.isnan(place):
        raise InputError(f"column 'rank' holds {rank!r:.60}, which is no number: give numbers, or drop the column")
    return place
