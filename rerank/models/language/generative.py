"""A listwise language model that writes its answer: "[3] > [1] > [2]", token by token, after the prompt.

Each name is chosen among those that are left (`permutations.py`), so every answer is a permutation. The model sees what
it has ranked when it goes on: this is not a Plackett-Luce policy, and costs a pass for each choice where the one of
`listwise.py` costs one in all. At the first place both ask the same question, and with names of one token they give the
same logits.

Its ranking is the greedy one: at each token the most likely (the most likely of n! whole rankings is not known to
anyone). Its scores fall along that ranking, and are those of the Plackett-Luce model that would have made the same
choices: the best has the log-probability of being named first, and the gap to the next is by how much the model
preferred the one to the other where their names part, at the place of the first.

A model may think first (`thinking`), and may be left to write freely (`constrained = False`): then the answer is read
strictly, and repaired in first-stage order where it is malformed, which is counted and said.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, final

import torch
from torch import Generator, Tensor, nn

from rerank.engine.batching import ItemScorer, micro_batches, padded, score_items
from rerank.engine.memory import out_of_memory, scoring_budget
from rerank.engine.precision import autocast, compute_dtype, keep_few_kernels
from rerank.errors import InputError
from rerank.models.language import decoding
from rerank.models.language.answering import Answering, Writing, falling_scores
from rerank.models.language.model import Lean, context_of
from rerank.models.language.next_tokens import NextTokens, padded_ids
from rerank.models.language.permutations import Permutation, Writer, Written
from rerank.models.language.prompt_tokens import PromptItem
from rerank.models.language.reading import Reading, ReadsLists
from rerank.models.policy import ScorePolicy, by_windows
from rerank.prompting.scales import Window
from rerank.types import CandidateList, Rollout

logger = logging.getLogger("rerank.models")

KEPT_ON_CPU = 8
"""Tokens whose keys and values are kept on a CPU, for each that is read at once."""


@final
class GenerativeScorer(ReadsLists, Lean):
    """A transformers causal language model that writes orders; to the engine, one that weighs the options of each."""

    kind = "generative"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        reading: Reading | None = None,
        precision: str = "auto",
        writing: Writing | None = None,
    ) -> None:
        super().__init__()
        keep_few_kernels()
        self.reading, self.writing = reading or Reading(naming="numbers"), writing or Writing()
        self.model, self.precision = model, precision
        self.prompts = self.reading.prompts(tokenizer, thinking=self.writing.thinking > 0)
        self.answering = Answering(self.prompts, self.writing)
        self.answering.check_context(context_of(model.config))
        self.settle()
        self.following = NextTokens(model, tokenizer.pad_token_id or 0)
        self.pace = decoding.pace_of(self.following)

    def encode(self, lists: Sequence[CandidateList]) -> list[PromptItem]:
        """One prompt for each list, which must fit into it."""
        return self.answering.encode(lists)

    def logits(self, items: Sequence[Any]) -> Tensor:
        """Log-probabilities [sum of widths] of the options of each choice of answers, in float32.

        A prompt alone stands for an answer that ranks its candidates as they come.
        """
        answers = [
            item if isinstance(item, Written) else self.answering.retraced(item, range(item.width)) for item in items
        ]
        choices = [choice for answer in answers for choice in answer.choices]
        if not choices:
            return torch.zeros(0, device=self.device)
        ids, mask = padded_ids([answer.ids for answer in answers], self.following.pad_id, self.device)
        rows = torch.tensor([row for row, answer in enumerate(answers) for _ in answer.choices], device=self.device)
        at = torch.tensor([choice.at for choice in choices], device=self.device)
        with autocast(self.device, compute_dtype(self.precision, self.device)):
            states = self.following.states(rows, at, {"input_ids": ids, "attention_mask": mask, "use_cache": False})
        return decoding.option_log_probs(self.following, states, choices)

    def write(self, writers: Sequence[Writer]) -> None:
        """Nothing; every writer is done."""
        with autocast(self.device, compute_dtype(self.precision, self.device)):
            decoding.write(self.following, writers, self.pace)


@final
class GenerativePolicy(nn.Module):
    """The distribution over rankings of a model that writes them; implements `types.Policy` and `types.Scorer`."""

    first_stage = None
    calibration = None
    in_order = True

    def __init__(self, scorer: Any, budget: int | None = None) -> None:
        super().__init__()
        self.scorer = scorer
        self.budget = scoring_budget(scorer.device) if budget is None else budget
        """Tokens of one micro-batch; halved for good where memory does not hold so many."""
        self.faults: Counter[str] = Counter()
        """Answers that were read, those of them that were malformed, and their faults (`answers.FAULTS`)."""

    @property
    def item_scorer(self) -> ItemScorer:
        """The scorer, as the engine sees it."""
        return self.scorer

    def drafts(self, items: Sequence[PromptItem], noise: Sequence[Tensor] | None) -> list[list[Writer]]:
        """Answers to each prompt, one for each row of its `noise` [S, T]; the greedy one where that is None."""
        longest = max((len(item) for item in items), default=0) + self.scorer.answering.most_tokens
        while True:
            try:
                with _without_dropout(self):
                    return self._drafts(items, noise)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.budget <= longest:
                    raise
            # Outside of the except block: there the error's traceback would still hold the tensors.
            self.budget //= 2
            logger.warning("out of memory; from here on at most %d tokens are written to at once", self.budget)

    def _drafts(self, items: Sequence[PromptItem], noise: Sequence[Tensor] | None) -> list[list[Writer]]:
        answering = self.scorer.answering
        rows: list[list[Sequence[float]]] = [[()]] * len(items) if noise is None else [n.tolist() for n in noise]
        found = [[answering.writer(item, row) for row in of_item] for item, of_item in zip(items, rows, strict=True)]
        # What an answer holds, beside the prompt that is read once, is keys and values. On a GPU these are what fills
        # the memory; a CPU has room for them, and is only slower where more than its cache is read at once.
        share = KEPT_ON_CPU if self.scorer.device.type == "cpu" else 1
        blocks: list[list[Writer]] = []
        costs: list[int] = []
        for item, writers in zip(items, found, strict=True):
            tokens = len(item) + answering.most_tokens
            size = max(1, share * self.budget // tokens)
            for start in range(0, len(writers), size):
                blocks.append(writers[start : start + size])
                costs.append(max(tokens, tokens * len(blocks[-1]) // share))
        for group in micro_batches(costs, self.budget):
            self.scorer.write([writer for i in group for writer in blocks[i]])
        return found

    def read(self, writer: Writer, n: int, window: Window | None = None) -> tuple[tuple[int, ...], bool]:
        """(the order of all n candidates, whether the answer was well formed); counts what was wrong with it.

        What it leaves out follows in first-stage order, by the places `window` of the candidates that were shown; where
        these are not known (training shuffles lists), in the order in which they came.
        """
        order, faults = self.scorer.answering.read(writer, n, window)
        self.faults["answers"] += 1
        if faults:
            if not self.faults["malformed"]:
                logger.warning(
                    "an answer is malformed (%s): what it does not rank follows in first-stage order (in the order "
                    "shown, where training shuffles); from here on this is counted (`policy.faults`)",
                    ", ".join(faults),
                )
            self.faults.update(["malformed", *faults])
        return order, not faults

    def tell_faults(self) -> None:
        """Nothing; says how many of all answers so far were malformed, where any was."""
        if self.faults["malformed"]:
            kinds = {name: n for name, n in self.faults.items() if name not in ("answers", "malformed")}
            logger.warning(
                "%d of %d answers were malformed: %s",
                *(self.faults["malformed"], self.faults["answers"]),
                ", ".join(f"{n} {name}" for name, n in sorted(kinds.items())),
            )

    # ------------------------------------------------------------------------------------------- as other policies do
    def served_of(self, lists: Sequence[CandidateList]) -> Tensor:
        """The scores [n] of each candidate of each list, in order; they fall along the ranking that is written."""

        def ask(shown: Sequence[CandidateList], windows: Sequence[Window]) -> list[list[float]]:
            found = self.drafts(self.scorer.encode(shown), None)
            return [self._scores(writer, window) for window, [writer] in zip(windows, found, strict=True)]

        return by_windows(self.scorer, lists, ask)

    def _scores(self, writer: Writer, window: Window) -> list[float]:
        order, _ = self.read(writer, len(window), window)
        if isinstance(writer.answer, Permutation):
            return falling_scores(writer.answer, writer, order)
        return [-float(order.index(i)) for i in range(len(window))]

    def all_views(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [1, B, N] of lists."""
        return padded(self.served_of(lists), lists)[None]

    def served_views(self, lists: Sequence[CandidateList]) -> Tensor:
        """As `all_views`."""
        return self.all_views(lists)

    def scores(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [B, N], -inf where padded; no gradient goes through them."""
        return self.all_views(lists)[0]

    def forward(self, lists: Sequence[CandidateList]) -> Tensor:
        """Scores [B, N], -inf where padded."""
        return self.scores(lists)

    def sample(self, lists: Sequence[CandidateList], n: int, generator: Generator) -> Rollout:
        """`n` rankings of each list, with the log-probabilities of all that was chosen (thoughts too)."""
        shape = (len(lists), n, self.scorer.answering.most_choices)
        noise = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).cpu()
        return self.rollout(lists, self.drafts(self.scorer.encode(lists), list(noise)))

    def rollout(self, lists: Sequence[CandidateList], drafts: Sequence[Sequence[Writer]]) -> Rollout:
        """The rankings that answers say."""
        width = max(map(len, lists), default=0)
        rankings, valid = [], []
        for candidates, writers in zip(lists, drafts, strict=True):
            n = len(candidates)
            said = [self.read(writer, n) for writer in writers]
            rankings.append([[*order, *range(n, width)] for order, _ in said])
            valid.append([well_formed for _, well_formed in said])
        log_probs = torch.tensor([[writer.log_prob for writer in writers] for writers in drafts])
        place = self.scorer.device
        return Rollout(torch.tensor(rankings).to(place), log_probs.to(place), torch.tensor(valid).to(place))

    def log_probs(self, lists: Sequence[CandidateList], rankings: Tensor) -> Tensor:
        """Log-probabilities [B, S] of writing the first K places of rankings [B, S, K]; differentiable."""
        if self.scorer.writing.thinking:
            raise InputError(
                "the log-probability of a ranking alone is a sum over all thoughts before it, which cannot be had: set "
                "thinking = 0, or use the log-probabilities that `sample` gives with its rankings"
            )
        items = [
            self.scorer.answering.retraced(item, [i for i in row if i < item.width])
            for item, of_list in zip(self.scorer.encode(lists), rankings.tolist(), strict=True)
            for row in of_list
        ]
        flat = score_items(self.scorer, items, self.budget).to(self.scorer.device)
        owner, taken, start = [], [], 0
        for row, item in enumerate(items):
            for choice in item.choices:
                owner.append(row)
                taken.append(start + choice.taken)
                start += len(choice.options)
        chosen = flat[torch.tensor(taken, dtype=torch.long, device=flat.device)]
        total = torch.zeros(len(items), device=flat.device)
        owners = torch.tensor(owner, dtype=torch.long, device=flat.device)
        return total.index_add(0, owners, chosen).reshape(rankings.shape[:2])


AnyPolicy: TypeAlias = ScorePolicy | GenerativePolicy
"""What stages train and folders hold."""


@contextmanager
def _without_dropout(policy: nn.Module) -> Iterator[None]:
    """Within the block the policy is in evaluation mode: what is drawn is drawn with the weights as they are."""
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)
