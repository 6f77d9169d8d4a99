"""Tiny causal language models of real architectures with random weights, and a tokenizer that is made here."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rerank.types import CandidateList

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(chat=False, letters=26):
    """Every byte is a token of its own; with `letters`, so are the first capital letters (they are bytes too)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    for n in range(10, 100):  # numbers of two digits are read as one token, as large vocabularies do
        vocabulary[str(n)] = len(vocabulary)
    merges = [(str(n)[0], str(n)[1]) for n in range(10, 100)]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=None))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}|[^\d]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if chat:
        fast.chat_template = CHAT
    return fast


def model(kind="qwen3", hidden=64, layers=2, heads=4, context=4096, seed=0, vocabulary=None):
    """A causal language model with random weights."""
    size = vocabulary or len(tokenizer())
    settings = dict(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=context,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "llama":
            return LlamaForCausalLM(LlamaConfig(**settings, initializer_range=0.1)).eval()
        return Qwen3ForCausalLM(Qwen3Config(**settings, head_dim=hidden // heads)).eval()


def folder_of(path, kind="qwen3", chat=False, **settings):
    """A model folder as a hub would give it."""
    path = Path(path)
    model(kind, **settings).save_pretrained(path)
    tokenizer(chat).save_pretrained(path)
    return path


def numbers(n_lists, n=5, seed=0, highest=40, start=0):
    """Lists whose documents are numbers; the grade of a document is its number's rank among them."""
    draw = torch.Generator().manual_seed(seed)
    lists = []
    for i in range(n_lists):
        values = (torch.randperm(highest, generator=draw)[:n] + 10).tolist()
        ordered = sorted(values)
        lists.append(
            CandidateList(
                query_id=f"q{start + i}",
                query="most",
                doc_ids=tuple(f"d{k}" for k in range(n)),
                texts=tuple(str(v) for v in values),
                labels=tuple(ordered.index(v) for v in values),
                pool=tuple(ordered.index(v) for v in values),
            )
        )
    return lists


def settings_of(folder):
    """What `rerank.json` of a saved model says."""
    return json.loads((Path(folder) / "rerank.json").read_text(encoding="utf8"))
