"""A saved model to the Hugging Face hub: looked at first, then sent as it is.

What is sent is a model's own files and nothing else: weights as safetensors (whole), settings, tokenizer, exported
ONNX files, its card, a licence. Pickles, links that lead out of the folder and files that do not belong to a model are
refused by name. The token is the one that the hub's own tools keep (`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rerank.errors import DataError, InputError, NotFound
from rerank.experiment.refusals import refusals_told
from rerank.models.card import CARD, HUB_ID, SETTINGS
from rerank.models.completeness import TOKENIZER_FILES

logger = logging.getLogger("rerank.experiment")

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
"""Files that can run code where they are read."""
NAMES = re.compile(
    r"README\.md|LICENSE(\.(md|txt))?|LICENCE(\.(md|txt))?|NOTICE(\.(md|txt))?|USE_POLICY\.md|\.gitattributes"
    r"|(rerank|retrieval|config|config_sentence_transformers|modules|sentence_bert_config|generation_config"
    r"|sentence_[a-z_]+_config|tokenizer_config|special_tokens_map|added_tokens|preprocessor_config|processor_config"
    r"|adapter_config)\.json"
    r"|chat_template\.(jinja|json)"
    r"|(model|head|adapter_model)\.safetensors|model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json"
)
EXPORTED = re.compile(r"model(_int8)?\.onnx(\.data)?")
FOLDERS = ("", "encoder", "adapter", "onnx")
"""Of a model of ours, beside those that sentence-transformers made for its modules."""


class Upload(NamedTuple):
    """One file that is sent."""

    path: str
    """In the folder, and in the repository."""
    size: int
    """In bytes."""


def uploads(model: Path) -> list[Upload]:
    """The files that `push` sends; an error where the folder is not one whole model and nothing else. Sends nothing."""
    model = Path(model)
    _check_folder(model)
    found = list(_files(model))
    _check_weights(model, {upload.path for upload in found})
    _check_card(model / CARD)
    _tell_paths(model, found)
    return found


def licence_of(model: Path) -> str | None:
    """The licence that the card of the model states, as the hub reads it; None where it states none."""
    from huggingface_hub import ModelCard

    stated = ModelCard.load(Path(model) / CARD, ignore_metadata_errors=True).data.to_dict().get("license")
    return str(stated) if stated else None


def push(model: Path, repo: str, private: bool = True, revision: str | None = None, message: str | None = None) -> str:
    """The address of the commit that holds the model now, in a repository that is made where there is none.

    With `private` a repository that is public is refused. `revision` is a branch, made where there is none.
    """
    _check_repo(repo)
    found = uploads(model)
    _check_token()
    from huggingface_hub import HfApi

    logger.info("%s: %d files, %.1f MB, to %s", model, len(found), sum(u.size for u in found) / 1e6, repo)
    with refusals_told(repo):
        api = HfApi()
        api.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        if private and not api.repo_info(repo, repo_type="model").private:
            raise InputError(
                f"{repo} is there and public, and the model was to be private: push it with private=False (--public), "
                "or give another repository"
            )
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=str(model),
            allow_patterns=[upload.path for upload in found],
            commit_message=message or "Model and card by rerank",
            revision=revision,
            repo_type="model",
        )
    return str(done.commit_url)


def _check_repo(repo: str) -> None:
    if not isinstance(repo, str) or not HUB_ID.fullmatch(repo) or len(repo) > 200:
        raise InputError(f"the repository {repo!r:.100} must be written NAME or OWNER/NAME, as in 'me/my-reranker'")


def _check_token() -> None:
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise InputError("HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so the hub is not asked: unset it to push")
    if get_token() is None:
        raise InputError(
            "there is no token of the hub on this machine: run `hf auth login`, or set HF_TOKEN to a token that may "
            "write (huggingface.co/settings/tokens)"
        )


def _check_folder(model: Path) -> None:
    if not model.is_dir():
        raise NotFound(f"there is no folder {model}; give the folder of a model, e.g. runs/NAME/model")
    if not (model / SETTINGS).is_file():
        inside = f"; did you mean {model / 'model'}?" if (model / "model" / SETTINGS).is_file() else ""
        raise InputError(f"{model} holds no {SETTINGS}, so it is no model that rerank saved{inside}")


def _files(model: Path) -> Iterator[Upload]:
    """Every file of the folder; an error that names those that are no part of a model."""
    root, strange, hidden = model.resolve(), [], []
    named = (f"{body}{path}" for body in ("", "encoder/") for path, _ in _modules(model / body))
    folders = {*FOLDERS, *named}
    for path in sorted(model.rglob("*")):
        name = path.relative_to(model).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise InputError(f"{path} is a link that leads out of the folder: put the file itself in its place")
        if path.is_dir():
            continue
        if path.suffix in PICKLES:
            raise InputError(
                f"{path} can hold a pickle, which runs code where it is read: remove it; our weights are safetensors"
            )
        if _belongs(name, folders):
            yield Upload(name, path.stat().st_size)
        elif any(part.startswith(".") for part in name.split("/")):
            hidden.append(name)
        else:
            strange.append(name)
    if strange:
        raise InputError(
            f"{model} holds {len(strange)} files that are no part of a model: {', '.join(strange[:5])}; move them away"
        )
    if hidden:
        logger.warning("%s: %d hidden files stay here, such as %s", model, len(hidden), hidden[0])


def _belongs(name: str, folders: set[str]) -> bool:
    """Whether a file of this name is part of a model that has these folders."""
    folder, _, last = name.rpartition("/")
    if folder == "onnx":
        return EXPORTED.fullmatch(last) is not None
    return folder in folders and (last in TOKENIZER_FILES or NAMES.fullmatch(last) is not None)


def _check_weights(model: Path, names: set[str]) -> None:
    """Nothing, when the weights, tokenizer and base that the model's settings call for are there, each file whole."""
    settings = _json(model / SETTINGS)
    kind, base = settings.get("kind"), settings.get("base")
    body = "encoder/" if kind == "light" else ""
    needed = ["head.safetensors"] if kind == "light" else []
    if base is not None:
        needed += ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
        _check_base(model, base)
    else:
        needed += [f"{body}config.json", *_weight_files(model, body, names), *_module_files(model, body)]
    missing = [name for name in needed if name not in names]
    if not any(f"{body}{name}" in names for name in TOKENIZER_FILES):
        missing.append(f"{body}tokenizer.json")
    if missing:
        raise NotFound(f"{model} is not whole: {', '.join(missing)} is missing; save the model anew")
    for name in sorted(name for name in names if name.endswith(".safetensors")):
        _check_whole(model / name)
    if kind == "cross-encoder" and (model / "config.json").is_file():
        _check_head(model)


def _check_base(model: Path, base: Any) -> None:
    if not isinstance(base, str) or not HUB_ID.fullmatch(base) or Path(base).is_dir():
        raise InputError(
            f"{model} holds adapters of a model in a folder here ({str(base)!r:.80}), which nobody else has: write the "
            f"hub's id of that model into field 'base' of {model / SETTINGS}"
        )


def _weight_files(model: Path, body: str, names: set[str]) -> list[str]:
    """The weight files of a transformer, from its index where it is in several."""
    index = f"{body}model.safetensors.index.json"
    if index not in names:
        return [f"{body}model.safetensors"]
    table = _json(model / index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise DataError.at(model / index, None, "field 'weight_map' names no file: save the model anew")
    return sorted({f"{body}{file}" for file in table.values()})


def _module_files(model: Path, body: str) -> list[str]:
    """The files of the linear heads that sentence-transformers puts after the transformer."""
    heads = [path for path, kind in _modules(model / body) if kind.endswith(".Dense")]
    return [f"{body}{path}/{name}" for path in heads for name in ("config.json", "model.safetensors")]


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(folder, type) of each module that sentence-transformers keeps in a folder of its own."""
    file = folder / "modules.json"
    try:
        told = json.loads(file.read_text(encoding="utf8")) if file.is_file() else []
        return [(str(m["path"]), str(m["type"])) for m in told if m["path"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError.at(file, None, f"this is no list of modules ({error}): save the model anew") from error


def _check_whole(file: Path) -> None:
    """Nothing, when a safetensors file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as content:
            tensors = len(list(content.keys()))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or cut short ({error}): save the model anew") from error
    if not tensors:
        raise InputError(f"{file} holds no weights: save the model anew")


def _check_head(model: Path) -> None:
    """Nothing, when the safetensors hold every weight of the network that `config.json` describes."""
    import torch
    import transformers

    from rerank.models.completeness import check_weights
    from rerank.models.encoder import named_failures

    with named_failures(str(model)):
        config = transformers.AutoConfig.from_pretrained(str(model))
    network = getattr(transformers, next(iter(config.architectures or [""])), None)
    if network is None:  # an architecture of another version; that its files are whole has been seen
        return
    with torch.device("meta"):
        check_weights(model, network(config))


def _check_card(path: Path) -> None:
    """Nothing, when there is a card whose header the hub can read."""
    from huggingface_hub import ModelCard

    if not path.is_file():
        raise NotFound(f"{path} is missing: save the model anew, which writes its card, or write one by hand")
    try:
        card = ModelCard.load(path, ignore_metadata_errors=False)
    except Exception as error:  # a YAML parser and the hub's own checks: each has errors of its own
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError.at(path, None, f"the YAML header cannot be read ({problem}): put it right") from error
    if not card.data.to_dict():
        raise DataError.at(path, None, "there is no YAML header between two lines of ---: the hub needs one")


def _tell_paths(model: Path, found: list[Upload]) -> None:
    """Nothing; warns of texts that name this user's own folder, which nobody else has and which says who he is."""
    home = str(Path.home())
    texts = [u.path for u in found if u.path == CARD or (u.path.endswith(".json") and u.size < 100_000)]
    naming = [p for p in texts if len(home) > 1 and home in (model / p).read_text(encoding="utf8", errors="replace")]
    if naming:
        logger.warning("%s: %s name folders of this machine (%s)", model, ", ".join(naming), home)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise DataError.at(path, None, f"this is not JSON ({error}): save the model anew") from error
    if not isinstance(content, dict):
        raise DataError.at(path, None, f"expected a table, not {type(content).__name__}: save the model anew")
    return content
