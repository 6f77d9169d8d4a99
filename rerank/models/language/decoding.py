"""Writing many answers at once with a causal language model, which reads every prompt once.

    prompts -> keys and values -> a row for each answer -> choose -> read what was chosen, with what follows -> ...

Prompts of unequal length are padded on the left, so that the tokens of a row stand together: a sliding window counts
columns, padding and all, and a recurrent state takes in whatever comes by. What follows from a choice (a separator, the
rest of a name) is read with it, in one pass, as far as the model allows (`Pace`). Rows that are done are dropped. Which
answers share a batch changes no draw: each row has its own random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from inspect import signature
from typing import final

import torch
from torch import Tensor

from rerank.errors import InputError, TrainingError
from rerank.models.language.next_tokens import FAILURES, NextTokens, padded_ids
from rerank.models.language.permutations import Choice, Writer


class Pace(Enum):
    """How many of the tokens that rows have yet to read they read in one pass."""

    ALL = "all"
    """Each its own, and those that have less are padded: padding then stands between a row's tokens, masked for good,
    with positions counted without it. Right where attention sees all that is not masked, and goes by positions."""
    EVEN = "even"
    """As many as the row that has fewest, so that nothing ever stands between tokens; rows choose when they are ready.
    Three times as many passes where names have one token or two; as many where all have one."""


def option_log_probs(following: NextTokens, states: Tensor, choices: Sequence[Choice]) -> Tensor:
    """The log-probabilities [sum of options] of all options of each choice, from the states [P, *] there."""
    widest = max(len(choice.options) for choice in choices)
    columns = torch.tensor([[*c.options, *[c.options[0]] * (widest - len(c.options))] for c in choices])
    real = torch.arange(widest) < torch.tensor([len(c.options) for c in choices])[:, None]
    real = real.to(states.device)
    found = _weighed(following, states, columns)
    total = found.masked_fill(~real, -torch.inf).logsumexp(1)
    whole = torch.tensor([i for i, c in enumerate(choices) if c.whole], device=states.device, dtype=torch.long)
    if len(whole):
        total = total.index_copy(0, whole, following.logits(states[whole]).logsumexp(1))
    return (found - total[:, None])[real]


def _weighed(following: NextTokens, states: Tensor, columns: Tensor) -> Tensor:
    """The logits [P, W] of the tokens `columns` [P, W]; the head is asked about each distinct one of them."""
    asked, place = columns.unique(return_inverse=True)
    return following.logits(states, asked).gather(1, place.to(states.device))


def pace_of(following: NextTokens) -> Pace:
    """The quickest pace at which a model writes with the probabilities that one pass over the text gives.

    It is tried out on two short made-up texts. A window is longer than they are; but `Pace.EVEN` cannot go wrong by it.
    """
    was_training = following.model.training
    following.model.eval()
    try:
        for pace in Pace:
            if (pace is not Pace.ALL or _sees_all(following)) and _agrees(following, pace):
                return pace
    finally:
        following.model.train(was_training)
    raise InputError(
        f"{type(following.model).__name__} cannot go on writing from what it has read (no keys and values that rows "
        "can be chosen from): use kind = 'listwise', which reads each prompt in one pass"
    )


def _sees_all(following: NextTokens) -> bool:
    """Whether attention has no window, as far as the configuration says."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = following.model.config.get_text_config()
    windows = {name: value for name, value in config.to_dict().items() if name.endswith(("window", "window_size"))}
    if any(isinstance(value, int | list) and not isinstance(value, bool) for value in windows.values()):
        return False  # GPT-Neo has one and keeps its cache whole
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


@final
class _Trial:
    """A turn of three choices among some tokens, each with more or fewer tokens that follow from it."""

    def __init__(self, options: Sequence[int], following: Sequence[int]) -> None:
        self._options, self._following = tuple(options), list(following)
        self.place = 0

    @property
    def done(self) -> bool:
        return not self._following

    def begin(self) -> tuple[int, ...]:
        return self._options[: self._following.pop(0)]

    def options(self) -> tuple[int, ...]:
        return self._options

    def take(self, token: int) -> tuple[int, ...]:
        return (token, *self._options[: self._following.pop(0)])


@torch.no_grad()
def _agrees(following: NextTokens, pace: Pace) -> bool:
    """Whether rows that read more and less at a time are written as one pass over each gives it."""
    options = following.made_up(1, 40)[0, 25:].unique().tolist()
    prompts = [Writer.packed(following.made_up(1, n)[0].tolist()) for n in (15, 6, 15)]
    trials = [_Trial(options, after) for after in ((0, 9, 1, 0), (3, 0, 4, 0), (0, 0, 6, 0))]
    writers = [Writer(prompt, [trial]) for prompt, trial in zip(prompts, trials, strict=True)]
    try:
        write(following, writers, pace)
    except FAILURES:
        return False
    stepwise = torch.tensor([weights for writer in writers for weights in writer.weighed])
    at_once = []
    for written in (writer.written() for writer in writers):
        ids, mask = padded_ids([written.ids], following.pad_id, following.device)
        at = torch.tensor([choice.at for choice in written.choices], device=following.device)
        read = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        states = following.states(torch.zeros_like(at), at, read)
        at_once.append(option_log_probs(following, states, written.choices).reshape(len(at), -1).cpu())
    wanted = torch.cat(at_once)
    # In 16 bits a pass of another shape rounds in another way; a model that loses track is off by all there is.
    coarse = 1e-3 if next(following.model.parameters()).dtype == torch.float32 else 0.2
    return float((stepwise - wanted).norm()) <= coarse * float((wanted - wanted.mean(1, keepdim=True)).norm()) + 1e-4


@torch.no_grad()
def write(following: NextTokens, writers: Sequence[Writer], pace: Pace) -> None:
    """Nothing; every writer is done."""
    open_writers = [writer for writer in writers if not writer.done]
    if not open_writers:
        return
    reading = _Reading(following, [writer.prompt for writer in open_writers], pace)
    reading.take([writer.read() for writer in open_writers])
    while open_writers:
        ready = reading.ready()
        if ready:
            choose(following, reading.states[ready], [open_writers[i] for i in ready])
        kept = [i for i, writer in enumerate(open_writers) if not writer.done]
        open_writers = [open_writers[i] for i in kept]
        if open_writers:
            reading.keep(kept)
            reading.take([writer.read() for writer in open_writers])
            reading.read()


@final
class _Reading:
    """What has been read of each row: keys and values, which of them are real, and what the model makes of it."""

    def __init__(self, following: NextTokens, prompts: Sequence[bytes], pace: Pace) -> None:
        from transformers import DynamicCache

        self.following, self.pace = following, pace
        known = signature(following.model.base_model.forward).parameters
        self.cache_name = "cache_params" if "cache_params" in known else "past_key_values"
        self.cache = DynamicCache(config=following.model.config)
        place = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        ids, mask = padded_ids(list(place), following.pad_id, following.device, on_the_left=True)
        self.mask, self.unread = mask[:, :0], [list[int]() for _ in place]
        self.states = self._pass(ids, mask, torch.full((len(place),), ids.shape[1] - 1))
        # From here on every answer has a row of its own, those to one prompt beginning with the same.
        self.keep([place[prompt] for prompt in prompts])

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing; the rows are from here on those that stood at `rows`, in that order."""
        if list(rows) == list(range(len(self.mask))):
            return
        index = torch.tensor(rows, device=self.following.device)
        self.cache.reorder_cache(index)
        self.mask, self.states = self.mask[index], self.states[index]
        self.unread = [list(self.unread[row]) for row in rows]

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """Nothing; rows have these tokens to read too."""
        for unread, more in zip(self.unread, tokens, strict=True):
            unread.extend(more)

    def ready(self) -> list[int]:
        """The rows that have read all they have."""
        return [row for row, unread in enumerate(self.unread) if not unread]

    def read(self) -> None:
        """Nothing; reads more of each row, none of which is ready."""
        waiting = [len(unread) for unread in self.unread]
        n = max(waiting) if self.pace is Pace.ALL else min(waiting)
        now, self.unread = [unread[:n] for unread in self.unread], [unread[n:] for unread in self.unread]
        rows = [Writer.packed(tokens) for tokens in now]
        ids, real = padded_ids(rows, self.following.pad_id, self.following.device)
        self.states = self._pass(ids, real, torch.tensor([len(tokens) - 1 for tokens in now]))

    def _pass(self, ids: Tensor, real: Tensor, last: Tensor) -> Tensor:
        """The states [R, *] after each row's `last` token."""
        positions = self.mask.sum(1, keepdim=True) + real.cumsum(1) - 1
        self.mask = torch.cat([self.mask, real], 1)
        read = {"input_ids": ids, "attention_mask": self.mask, "position_ids": positions.clamp(min=0)}
        rows = torch.arange(len(ids), device=ids.device)
        return self.following.states(
            rows, last.to(ids.device), {**read, self.cache_name: self.cache, "use_cache": True}
        )


def choose(following: NextTokens, states: Tensor, writers: Sequence[Writer]) -> None:
    """Nothing; each writer takes a token by what may follow from its state, of [R, *]."""
    allowed = [writer.options() for writer in writers]
    masked = [i for i, options in enumerate(allowed) if options is not None]
    free = [i for i, options in enumerate(allowed) if options is None]
    if masked:
        _among(following, states[masked], [(writers[i], allowed[i] or ()) for i in masked])
    if free:
        log_p = following.logits(states[free]).log_softmax(-1)
        log_p = log_p.cpu() if log_p.device.type == "mps" else log_p  # which has no float64 to draw with
        picked = _picked(log_p, [writers[i] for i in free])
        chances = log_p.gather(1, picked[:, None])
        _check_finite(chances)
        for i, token, chance in zip(free, picked.tolist(), chances.tolist(), strict=True):
            writers[i].take(token, chance)


def _among(following: NextTokens, states: Tensor, rows: Sequence[tuple[Writer, tuple[int, ...]]]) -> None:
    """Writers take one of their options."""
    widest = max(len(options) for _, options in rows)
    columns = torch.tensor([[*options, *[options[0]] * (widest - len(options))] for _, options in rows])
    real = torch.arange(widest) < torch.tensor([len(options) for _, options in rows])[:, None]
    found = _weighed(following, states, columns).cpu()
    _check_finite(found)
    log_p = found.masked_fill(~real, -torch.inf).log_softmax(-1)
    picked = _picked(log_p, [writer for writer, _ in rows]).tolist()
    for (writer, options), at, weights in zip(rows, picked, log_p.tolist(), strict=True):
        writer.take(options[at], weights[: len(options)])


def _picked(log_p: Tensor, writers: Sequence[Writer]) -> Tensor:
    """[R] what each row draws with its own next random number, or the most likely where it has none."""
    best = log_p.argmax(-1)
    drawing = [i for i, writer in enumerate(writers) if len(writer.noise)]
    if not drawing:
        return best
    u = torch.tensor([writers[i].noise[len(writers[i].choices)] for i in drawing], dtype=torch.float64)
    reached = log_p[drawing].double().exp().cumsum(-1)
    wanted = u.to(log_p.device)[:, None] * reached[:, -1:]
    # A product that is rounded up to the sum itself belongs to the last option that has a chance.
    last = (reached < reached[:, -1:]).sum(-1)
    best[drawing] = torch.minimum(torch.searchsorted(reached, wanted, right=True)[:, 0], last)
    return best


def _check_finite(log_p: Tensor) -> None:
    if not bool(log_p.isfinite().all()):
        raise TrainingError(
            "logits are not finite: the weights are broken, or too large for this number format; try precision = "
            "'float32', or an earlier model"
        )
