"""What all tests share: quiet threads, no network, and a tiny random encoder that any text tokenizes for."""

import os

# Before torch is imported: threads that wait must not spin on a machine of two cores, and no test asks the hub.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import string
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # one core for each of two workers
settings.register_profile("rerank", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("rerank")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_pieces() -> dict[str, int]:
    """Vocabulary of single characters, as beginnings and continuations, so that any ascii text has pieces."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    return {piece: i for i, piece in enumerate([*SPECIAL, *characters, *(f"##{c}" for c in characters)])}


def write_tiny_bert(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT encoder (hidden 32, 2 layers) and its tokenizer to `folder`, and return the folder."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = word_pieces()
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=128,
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,  # wide enough that different texts get visibly different vectors
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """Folder of a tiny random BERT encoder with its tokenizer (config.json, model.safetensors, tokenizer.json)."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")
