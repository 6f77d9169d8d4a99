"""A vLLM engine, asked for one thing: the logits of the tokens that may follow prompts.

    prompt [        one request of one token; of all tokens only the names may follow, and each comes with its logit

`allowed_token_ids` are the tokens that may follow, `logprobs` asks for as many as these, and
`logprobs_mode = "processed_logits"` gives values after the restriction. Values before it ("raw", the default) are of
the most likely tokens of the whole vocabulary, among which a name may be missing; log-probabilities instead of logits
would be shifted by a number for each prompt, which no ranking notices but a calibration does. Temperature is 0, so the
engine draws nothing: what is drawn is drawn here.

Read in the source of vLLM 0.33.0: `LLM` (`generate`, `collective_rpc`, `reset_prefix_cache`, `sleep`, `wake_up`,
`model_config`), `SamplingParams`, `TokensPrompt`, `LoRARequest`. In earlier versions one of its two model runners gave
log-probabilities alone. vLLM pins its own torch and transformers, so it wants an environment of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from rerank.engine.precision import compute_dtype
from rerank.errors import DataError, InputError, Mismatch, NotFound, TrainingError, need
from rerank.models.encoder import named_failures
from rerank.models.language.model import ADAPTER, is_adapted, load_tokenizer, save_language_model
from rerank.models.texts import ID

EXTRA = "vllm"
MODE = "processed_logits"
LEAST_LOGPROBS = 20
"""What vLLM allows by default."""
MOST_OPTIONS = 1024
"""Tokens that one request may be restricted to."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that `max_lora_rank` may have."""
_ids = count(1)
"""Adapters are known to an engine by number and name, and what it has cached of one is never used for another."""


@final
@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine is started."""

    gpu_memory_utilization: float = 0.9
    """Share of each GPU's memory that the engine takes, weights and cache; lower it where training shares the GPU."""
    tensor_parallel_size: int = 1
    """GPUs that the model is split over."""
    max_model_len: int | None = None
    """Tokens of a prompt with its answer; None: what a full window can have. More only costs memory."""
    sleeps: bool = False
    """Whether the engine can be put to sleep (`VllmEngine.asleep`), which needs CUDA or ROCm."""

    def __post_init__(self) -> None:
        share = self.gpu_memory_utilization
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"gpu_memory_utilization must be a share above 0, up to 1, not {share!r}")
        for field in ("tensor_parallel_size", "max_model_len"):
            value = getattr(self, field)
            if value is None and field == "max_model_len":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{field} must be a whole number of at least 1, not {value!r}")


@final
class VllmEngine:
    """A vLLM engine, asked for the logits of the tokens that may follow prompts."""

    def __init__(self, llm: Any, tokenizer: Any, adapter: Path | None = None, rank: int = 0) -> None:
        """`llm` is a `vllm.LLM`, started with `adapter`'s base model and `max_lora_rank = rank` where there is one."""
        self.llm, self.tokenizer, self.rank = llm, tokenizer, rank
        self.request: Any = None
        mode = llm.model_config.logprobs_mode
        if mode != MODE:
            raise Mismatch(f"the engine was started with logprobs_mode = {mode!r}; start it with {MODE!r}")
        if adapter is not None:
            self.take_adapter(adapter)

    @classmethod
    def started(
        cls, path: str, saved: Mapping[str, Any], tokens: int, options: int, precision: str, settings: EngineSettings
    ) -> VllmEngine:
        """An engine with room for prompts and answers of `tokens`, which gives the logits of `options` at once."""
        base = str(saved.get("base") or path)
        check_room(base, tokens, settings.max_model_len)
        adapter = Path(path) / ADAPTER if saved.get("base") else None
        rank = 0 if adapter is None else min(r for r in RANKS if r >= _rank_of(adapter))
        lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank} if rank else {}
        if precision != "auto":
            compute_dtype(precision, torch.device("cpu"))  # a name that is not known is an error here
        tokenizer = load_tokenizer(path)
        llm = need("vllm", EXTRA).LLM(
            model=base,
            tokenizer=path,
            dtype=precision,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=settings.max_model_len or tokens,
            max_logprobs=max(LEAST_LOGPROBS, options),
            logprobs_mode=MODE,
            enable_prefix_caching=True,
            enable_sleep_mode=settings.sleeps,
            **lora,
        )
        return cls(llm, tokenizer, adapter, rank)

    def weigh(self, questions: Sequence[tuple[bytes, tuple[int, ...]]]) -> list[list[float]]:
        """For each question, a prompt's ids and the tokens that may follow: the logits of these, in their order."""
        if not questions:
            return []
        vllm = need("vllm", EXTRA)
        answers = self.llm.generate(
            [vllm.TokensPrompt(prompt_token_ids=np.frombuffer(ids, dtype=ID).tolist()) for ids, _ in questions],
            [
                vllm.SamplingParams(
                    max_tokens=1, temperature=0.0, allowed_token_ids=list(after), logprobs=len(after), detokenize=False
                )
                for _, after in questions
            ],
            use_tqdm=False,
            lora_request=self.request,
        )
        pairs = zip(questions, answers, strict=True)
        return [self._logits(answer.outputs[0].logprobs[0], after) for (_, after), answer in pairs]

    def _logits(self, found: Mapping[int, Any], after: Sequence[int]) -> list[float]:
        for token in after:
            name = self.tokenizer.convert_ids_to_tokens(token)
            if token not in found:
                raise Mismatch(
                    f"the engine gave no logit for {name!r} (token {token}), one of {len(after)} that may follow: it "
                    f"gave {len(found)}; it has to honour allowed_token_ids, with logprobs_mode = {MODE!r}"
                )
            if not math.isfinite(found[token].logprob):
                raise TrainingError(
                    f"the engine's logit for {name!r} (token {token}) is {found[token].logprob}: the weights are "
                    "broken, or too large for this number format; try precision = 'float32'"
                )
        return [float(found[token].logprob) for token in after]

    def check_options(self, options: int) -> None:
        """Nothing, when the engine gives as many logits as there can be options; else a Mismatch."""
        if options > MOST_OPTIONS:
            raise InputError(
                f"vLLM restricts a token to {MOST_OPTIONS} at most, and {options} are needed: lower window"
            )
        allowed = self.llm.model_config.max_logprobs
        if allowed != -1 and options > allowed:
            raise Mismatch(
                f"a window needs the logits of up to {options} tokens, and the engine gives {allowed}: start it with "
                f"max_logprobs = {options}, or lower window"
            )

    # ------------------------------------------------------------------------------------------------ newer weights
    def take_weights_of(self, scorer: Any, folder: Path) -> None:
        """Nothing; from here on the engine has the weights of `scorer`, which are left in `folder`.

        Adapters are small and quick to take; full weights are written and read again as a whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        save_language_model(scorer.model, scorer.prompts.tokenizer, folder)
        if is_adapted(scorer.model):
            self.take_adapter(folder / ADAPTER)
        else:
            self.take_weights(folder)

    def take_adapter(self, folder: Path) -> None:
        """Nothing; from here on the engine answers with the adapters of a folder in peft's format, read when asked."""
        rank = _rank_of(folder)
        if rank > self.rank:
            reason = f"adapters of rank up to {self.rank}" if self.rank else "a model without adapters"
            raise Mismatch(f"{folder} holds adapters of rank {rank}, and the engine was started for {reason}")
        number = next(_ids)
        made = need("vllm.lora.request", EXTRA).LoRARequest
        # A path that is not absolute may be taken for a model of the hub.
        self.request = made(f"rerank-{number}", number, str(folder.resolve()))

    def take_weights(self, folder: Path) -> None:
        """Nothing; from here on the engine has the weights of a model folder of the same architecture."""
        if self.rank:
            raise Mismatch(f"the engine was started for adapters: give it adapters, not the whole weights of {folder}")
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder.resolve())})
        # What was computed of prompts with the old weights would otherwise be taken for theirs.
        if not self.llm.reset_prefix_cache():
            raise Mismatch("the engine kept what it had cached with its old weights: is it answering another caller?")

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Within the block the engine's GPU memory is free for training; its weights wait in the CPU's memory."""
        self.llm.sleep(level=1)
        try:
            yield
        finally:
            self.llm.wake_up()


def check_room(model: str, tokens: int, room: int | None) -> None:
    """Nothing, when `tokens` fit into what the model reads, and into the `room` that was asked for."""
    from transformers import AutoConfig

    with named_failures(model):
        config = AutoConfig.from_pretrained(model).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    for what, limit in (("the model reads", context), ("max_model_len is", room)):
        if limit is not None and tokens > limit:
            raise InputError(
                f"a full prompt with what follows it has up to {tokens} tokens, and {what} {limit}: lower window or "
                "document_tokens"
            )


def _rank_of(adapter: Path) -> int:
    """The rank of saved adapters."""
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise NotFound(f"{file} is missing: the adapters are not all there; save the model anew")
    try:
        rank = json.loads(file.read_text(encoding="utf8")).get("r")
    except (ValueError, AttributeError) as error:
        raise DataError.at(file, None, f"this is no table in JSON ({error}): save the model anew") from error
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= RANKS[-1]:
        raise DataError.at(file, None, f"field 'r' is {rank!r}; allowed with vLLM is a rank of 1 to {RANKS[-1]}")
    return rank
