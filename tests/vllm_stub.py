"""A stand-in for the parts of vLLM 0.33 that we use, which computes with transformers in this process.

It is strict where vLLM is (unknown settings, more log-probabilities than allowed, prompts that are too long, adapters
where none were announced) and remembers where vLLM does: what it computed of a prompt holds for this prompt and adapter
name until the cache is reset, and an adapter is read once for each of its numbers.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TypedDict

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VLLMValidationError(Exception):
    """A request is wrong."""


class TokensPrompt(TypedDict):
    """A prompt in tokens."""

    prompt_token_ids: list[int]


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks for; here always one token, the most likely."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    logprobs: int | None = None
    allowed_token_ids: list[int] | None = None
    detokenize: bool = True

    def __post_init__(self):
        if self.temperature != 0 or self.max_tokens != 1:
            raise NotImplementedError("the stand-in gives one token, greedily")


@dataclass(frozen=True)
class LoRARequest:
    """An adapter; two are one if their names are."""

    lora_name: str
    lora_int_id: int = field(compare=False)
    lora_path: str = field(compare=False)

    def __post_init__(self):
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")


class LLM:
    """An engine."""

    def __init__(
        self,
        model,
        *,
        tokenizer=None,
        dtype="auto",
        tensor_parallel_size=1,
        gpu_memory_utilization=0.92,
        max_model_len=None,
        max_logprobs=20,
        logprobs_mode="raw_logprobs",
        enable_prefix_caching=None,
        enable_sleep_mode=False,
        enable_lora=False,
        max_loras=1,
        max_lora_rank=16,
    ):
        assert logprobs_mode in MODES
        assert max_lora_rank in RANKS
        AutoTokenizer.from_pretrained(tokenizer or model)
        self.base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        derived = self.base.config.max_position_embeddings
        if max_model_len is not None and max_model_len > derived:
            raise ValueError(f"User-specified max_model_len ({max_model_len}) is greater than the derived {derived}")
        self.model_config = SimpleNamespace(
            model=model,
            dtype=dtype,
            max_model_len=max_model_len or derived,
            max_logprobs=max_logprobs,
            logprobs_mode=logprobs_mode,
        )
        self.caches, self.sleeps, self.enable_lora = bool(enable_prefix_caching), enable_sleep_mode, enable_lora
        self.max_lora_rank, self.gpu_memory_utilization = max_lora_rank, gpu_memory_utilization
        self.tensor_parallel_size = tensor_parallel_size
        self.asleep = False
        self.adapted, self.cached = {}, {}
        self.requests = []
        """How many requests each call of `generate` brought."""

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        """One output for each prompt."""
        if self.asleep:
            raise RuntimeError("the engine is asleep")
        if lora_request is not None and not self.enable_lora:
            raise VLLMValidationError(f"Got lora_request {lora_request} but LoRA is not enabled!")
        if len(prompts) != len(sampling_params):
            raise ValueError("The lengths of prompts and params must be the same.")
        self.requests.append(len(prompts))
        pairs = zip(prompts, sampling_params, strict=True)
        return [self._answer(prompt["prompt_token_ids"], params, lora_request) for prompt, params in pairs]

    def _answer(self, ids, params, lora_request):
        config = self.model_config
        if len(ids) + 1 > config.max_model_len:
            raise VLLMValidationError(f"The decoder prompt (length {len(ids)}) is longer than {config.max_model_len}")
        if params.logprobs > config.max_logprobs:
            raise VLLMValidationError(
                f"Requested sample logprobs of {params.logprobs}, which is greater than max allowed: "
                f"{config.max_logprobs}"
            )
        if not params.allowed_token_ids:
            raise VLLMValidationError("allowed_token_ids is not None and empty!")
        logits = self._logits(tuple(ids), lora_request)
        masked = torch.full_like(logits, -torch.inf)
        masked[params.allowed_token_ids] = logits[params.allowed_token_ids]
        taken = int(masked.argmax())
        values = logits if config.logprobs_mode.startswith("raw") else masked
        if config.logprobs_mode.endswith("logprobs"):
            values = values.log_softmax(0)
        found = {taken: SimpleNamespace(logprob=float(values[taken]), rank=1, decoded_token=None)}
        best = values.topk(params.logprobs)
        for rank, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), start=1):
            found[token] = SimpleNamespace(logprob=value, rank=rank, decoded_token=None)
        output = SimpleNamespace(index=0, token_ids=[taken], logprobs=[found], finish_reason="length")
        return SimpleNamespace(prompt_token_ids=list(ids), outputs=[output], finished=True)

    @torch.no_grad()
    def _logits(self, ids, lora_request):
        key = (ids, None if lora_request is None else (lora_request.lora_name, lora_request.lora_path))
        if key not in self.cached or not self.caches:
            model = self.base if lora_request is None else self._with_adapter(lora_request)
            self.cached[key] = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        return self.cached[key]

    def _with_adapter(self, request):
        if request.lora_int_id not in self.adapted:
            folder = Path(request.lora_path)
            if not folder.is_absolute():
                raise ValueError(f"{folder} would be looked for on the hub")
            settings = peft.LoraConfig.from_pretrained(str(folder))
            if settings.r > self.max_lora_rank:
                raise ValueError(f"LoRA rank {settings.r} is greater than max_lora_rank {self.max_lora_rank}.")
            model = AutoModelForCausalLM.from_pretrained(self.model_config.model, dtype=torch.float32).eval()
            peft.inject_adapter_in_model(settings, model)
            peft.set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
            self.adapted[request.lora_int_id] = model.eval()
        return self.adapted[request.lora_int_id]

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        """`reload_weights` alone."""
        assert method == "reload_weights"
        self.model_config.model = kwargs["weights_path"]
        self.base = AutoModelForCausalLM.from_pretrained(kwargs["weights_path"], dtype=torch.float32).eval()
        return [None]

    def reset_prefix_cache(self, reset_running_requests=False, reset_connector=False):
        """Forget what was computed of prompts."""
        self.cached.clear()
        return True

    def sleep(self, level=1, mode="abort"):
        """Give memory back."""
        assert self.sleeps
        assert level == 1
        self.asleep = True
        self.cached.clear()

    def wake_up(self, tags=None):
        """Take it again."""
        self.asleep = False
        return True


def install(monkeypatch):
    """Put the stand-in in vLLM's place."""
    vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams, vllm.TokensPrompt = LLM, SamplingParams, TokensPrompt
    request.LoRARequest = LoRARequest
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return vllm
