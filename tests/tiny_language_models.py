"""Tiny causal language models of real architectures with random weights, and a tokenizer that is made here."""

import json
import string
from pathlib import Path

import torch
import transformers
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


def sentencepiece(scheme="first"):
    """As Llama 2 and Mistral have them: a blank, which is a part of tokens, is put before a text that begins."""
    marks = string.ascii_letters + string.digits + "[]>"
    tokens = ["<unk>", "<s>", "</s>", "\u2581", *string.printable.replace(" ", ""), *(f"\u2581{c}" for c in marks)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\u2581", c) for c in marks], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def merging():
    """A tokenizer of bytes that knows some runs across words, marks and lines as tokens: "]<blank>", ".<line>"."""
    table = json.loads(tokenizer().backend_tokenizer.to_str())
    table["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    table["model"]["merges"] = [("]", "\u0120"), (".", "\u010a"), ("\u010a", "\u010a"), ("\u010a", "Q")]
    for left, right in table["model"]["merges"]:
        table["model"]["vocab"][left + right] = max(table["model"]["vocab"].values()) + 1
    table["added_tokens"] = []
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


OTHERS = {
    "mistral": ("Mistral", {"sliding_window": 24}),
    "gemma2": ("Gemma2", {"sliding_window": 24, "head_dim": 8}),
    "gemma3": ("Gemma3", {"sliding_window": 24, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "gpt_neo": (
        "GPTNeo",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 24, "num_heads": 4},
    ),
    "gpt_neox": ("GPTNeoX", {}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4096}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "mamba": ("Mamba", {"state_size": 8}),
    "roberta": ("Roberta", {}),
}
"""Causal language models that differ in what they see or keep, with what their configuration has beside the usual."""


def other_model(kind, seed=0):
    """A causal language model of another architecture with random weights; its window, if it has one, of 24 tokens."""
    name, settings = OTHERS[kind]
    config = getattr(transformers, f"{name}TextConfig" if kind == "gemma3" else f"{name}Config")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind in ("mistral", "gemma2", "gemma3", "lfm2"):
        shape["num_key_value_heads"] = 2
    if kind == "gpt2":
        shape = {}
    usual = {"vocab_size": len(tokenizer()), "max_position_embeddings": 4096, "initializer_range": 0.2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
        return getattr(transformers, name + head)(config(**shape, **usual, **special, **settings)).eval()


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
