"""A reranker as a step of PyTerrier pipelines.

    from rerank.integrations.pyterrier import RerankTransformer

    reranked = first_stage % 100 >> RerankTransformer("runs/quickstart/model")
    reranked(topics)

In: the columns qid, query, docno and text (`pt.text.get_text(index, "text")` adds the texts). Out: the same rows, best
first within each query, with score (logits) and rank; other columns are kept. No Java is started. Extra:
pip install 'rerank[pyterrier]'.

Documents with equal logits stay in the order of the `rank` column, where the frame has one, else of its rows. PyTerrier
hands scores to trec_eval, which would order them by docno; so equal scores come out one float32 apart, and
`pt.Experiment` measures the ranking that the rank column shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from rerank.errors import InputError, need
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
    texts; `how` is what `Reranker.from_pretrained` takes (device, precision, max_length, ...).
    """

    # Without a help_url, PyTerrier would fetch the index of its own documentation to look for this class.
    schematic: ClassVar[dict[str, str | None]] = {"label": "Rerank", "help_url": None}

    def __init__(self, model: str | Path | Reranker, text_field: str = "text", **how: Any) -> None:
        if not isinstance(text_field, str) or not text_field:
            raise InputError(
                f"text_field must name the column that holds the texts, such as 'text', not {text_field!r}"
            )
        super().__init__()
        self.reranker = reranker_of(model, **how)
        self.text_field = text_field

    def __repr__(self) -> str:
        return f"RerankTransformer({self.reranker!r})"

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The rows of `inp` with score and rank, queries in the order in which they came."""
        import numpy as np

        pt.validate.columns(inp, includes=["qid", "query", "docno", self.text_field], context=self)
        groups = _groups(inp)
        self._check(inp, groups)
        texts, queries = inp[self.text_field].tolist(), inp["query"].tolist()
        questions = [(queries[rows[0]], [texts[row] for row in rows]) for rows in groups]
        order: list[int] = []
        scores: list[float] = []
        ranks: list[int] = []
        for rows, hits in zip(groups, self.reranker.rank_many(questions), strict=True):
            order += [rows[hit.index] for hit in hits]
            scores += apart([hit.score for hit in hits])
            ranks += range(pt.model.FIRST_RANK, pt.model.FIRST_RANK + len(hits))
        rest = inp.drop(columns=["score", "rank"], errors="ignore").iloc[order].reset_index(drop=True)
        return rest.assign(score=np.array(scores, dtype=np.float64), rank=np.array(ranks, dtype=np.int64))

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


def _groups(inp: pd.DataFrame) -> list[list[int]]:
    """The places of each qid's rows, by their rank where the frame has ranks; queries as they came."""
    found: dict[Any, list[int]] = {}
    for row, qid in enumerate(inp["qid"].tolist()):
        found.setdefault(qid, []).append(row)
    if "rank" not in inp.columns:
        return list(found.values())
    ranks = inp["rank"].tolist()
    return [sorted(rows, key=lambda row: _place(ranks[row])) for rows in found.values()]


def _place(rank: Any) -> float:
    """The rank as a number; what is none, as after an outer join, comes last."""
    return float(rank) if isinstance(rank, int | float) and rank == rank else float("inf")
