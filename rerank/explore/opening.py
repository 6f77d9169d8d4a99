"""What a finished `rerank train` left in its folder, loaded: collection, first stage, the policies of each model.

What is not there is said (`notes`) and left out; the rest works.
"""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

from rerank.composition import FIRST_STAGE, policy_of, retrievers_of
from rerank.data import fingerprint, load_collection
from rerank.errors import InputError, NotFound, RerankError
from rerank.experiment.arms import CLONE, REFINED
from rerank.experiment.lists import limited
from rerank.experiment.training import arm_name
from rerank.experiment.workspace import DATA, RECIPE
from rerank.models.backbones import SETTINGS, load_encoder
from rerank.models.encoder import VectorStore
from rerank.models.language.generative import AnyPolicy
from rerank.models.loading import load_policy
from rerank.recipe import Model, Recipe, load_recipe
from rerank.retrieval.first_stage import SCORES_FILE, FirstStage
from rerank.training.checkpoint import Checkpoint, latest_checkpoint
from rerank.types import Collection, Retriever


@final
@dataclass(frozen=True)
class Opened:
    """A run's folder, loaded, but for the models."""

    folder: Path
    recipe: Recipe
    collection: Collection
    """The test collection."""
    retrievers: list[Retriever]
    stored: FirstStage | None
    """The candidates of the test queries as the run had them."""
    store: VectorStore | None
    """The encoder, with the vectors of the collection's documents where the first stage is dense."""
    notes: list[str]
    """What is to be said about it."""


class Policies(NamedTuple):
    """Two stages of one model, each None where it is not in the folder."""

    clone: AnyPolicy | None
    refined: AnyPolicy | None
    notes: tuple[str, ...]


def opened(folder: Path, base: Path | None, say: Callable[[str], None]) -> Opened:
    """The run in `folder`."""
    if not (folder / RECIPE).is_file():
        raise NotFound(f"{folder} holds no run: it has no {RECIPE}. Give the folder that `rerank train` wrote (--out)")
    recipe = load_recipe(folder / RECIPE)
    say(f"reading {_said(recipe.data.test.collection)}")
    notes: list[str] = []
    collection, start = _test_collection(recipe, folder, base, notes)
    store = _encoder(folder, recipe)
    say(f"indexing {len(collection.documents):,} documents (dense indexes are kept from run to run)")
    retrievers = retrievers_of(recipe.retrieval, collection, store, folder.parent / ".indexes")
    stored = None
    if (folder / "first_stage" / "test" / SCORES_FILE).is_file():
        stored = FirstStage.load(folder / "first_stage" / "test")
    else:
        notes.append("first_stage/test is not in the folder: the candidates of test queries are retrieved anew")
    return Opened(folder, replace(recipe, base=start), collection, retrievers, stored, store, notes)


def policies_of(run: Opened, model: Model) -> Policies:
    """Clone and refined policy of one model, with the weights that the run ended with."""
    notes: list[str] = []
    folder = run.folder / "model" / model.name if model.name else run.folder / "model"
    saved = load_policy(str(folder), precision=model.precision) if (folder / SETTINGS).is_file() else None
    seed = _seed_of(run, model, saved, notes)
    last = {arm: latest_checkpoint(run.folder / "arms" / _arm_folder(model, arm, seed)) for arm in (CLONE, REFINED)}
    refined = saved if saved is not None else _with_weights(run, model, seed, last[REFINED], None)
    clone = _with_weights(run, model, seed, last[CLONE], refined)
    for arm, policy in ((CLONE, clone), (REFINED, refined)):
        if policy is None:
            notes.append(
                f"{arm_name(model, arm)} is not in the folder (arms/{_arm_folder(model, arm, seed)}): left out"
            )
    if clone is None and refined is None:
        raise NotFound(
            f"{run.folder} has neither {folder.relative_to(run.folder)} nor the arms of that model: no model"
        )
    return Policies(clone, refined, tuple(notes))


def _arm_folder(model: Model, arm: str, seed: int) -> str:
    """As `experiment.training` names it."""
    return arm_name(model, arm).replace(" ", "-") + (f"-seed-{seed}" if seed else "")


def _with_weights(
    run: Opened, model: Model, seed: int, found: Checkpoint | None, like: AnyPolicy | None
) -> AnyPolicy | None:
    """A policy with the weights of a checkpoint: a copy of `like` where these fit it, else as the recipe makes it.

    A saved cross-encoder has its low-rank adapters merged, so its clone's weights, which have not, do not fit.
    """
    if found is None:
        return None
    weights = found.tensors["weights"]
    if like is not None and _shapes(like.state_dict()) == _shapes(weights):
        policy = copy.deepcopy(like)
    else:
        features = (FIRST_STAGE, *(retriever.name for retriever in run.retrievers))
        policy = policy_of(model, run.store, features, run.recipe.seed + seed)
    policy.load_state_dict(dict(weights))
    policy.calibration = None
    if policy.first_stage is not None:
        policy.first_stage.active = bool(found.state["first_stage"])
    return policy.eval()


def _shapes(weights: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _seed_of(run: Opened, model: Model, saved: AnyPolicy | None, notes: list[str]) -> int:
    """Which seed's refined model is the saved one (the best on dev is): the one whose weights are equal."""
    import torch

    if run.recipe.seeds == 1 or saved is None:
        return 0
    own = saved.state_dict()
    for seed in range(run.recipe.seeds):
        found = latest_checkpoint(run.folder / "arms" / _arm_folder(model, REFINED, seed))
        weights = found.tensors["weights"] if found is not None else {}
        if _shapes(own) == _shapes(weights) and all(torch.equal(own[name].cpu(), weights[name]) for name in own):
            return seed
    notes.append("which seed the saved model comes from cannot be told; the clone is that of the first seed")
    return 0


def _encoder(folder: Path, recipe: Recipe) -> VectorStore | None:
    """The run's encoder: a light model keeps its own beside it."""
    if "dense" not in recipe.retrieval.retrievers and not any(model.kind == "light" for model in recipe.models):
        return None
    for model in recipe.models:
        kept = folder / "model" / model.name / "encoder"
        if model.kind == "light" and kept.is_dir():
            return load_encoder(str(kept))
    return load_encoder(recipe.retrieval.encoder)


# ---------------------------------------------------------------------------------------------------------- collection
def _test_collection(recipe: Recipe, folder: Path, base: Path | None, notes: list[str]) -> tuple[Collection, Path]:
    """The test collection and where its path starts: the first place at which the very data of the run are found."""
    known = _fingerprint(folder)
    other: tuple[Collection, Path] | None = None
    problem: RerankError | None = None
    for place in [base] if base is not None else _bases(folder):
        try:
            found = limited(load_collection(recipe.data.test.collection, place), recipe.data.test.limit)
        except RerankError as error:
            problem = problem or error
            continue
        if known is None or fingerprint(found) == known:
            return found, place
        other = other or (found, place)
    if other is None:
        assert problem is not None  # there was one place at least
        raise InputError(
            f"the collection of the run was not found: {problem}. Its path starts at the folder of the recipe: give "
            f"that folder as base (--base){'' if base is None else f', not {base}'}"
        ) from problem
    notes.append(
        f"{_said(recipe.data.test.collection)} is not what the run was made on (its texts, queries or grades differ): "
        "what is shown may differ from the run's report"
    )
    return other


def _said(collection: str | Mapping[str, Any]) -> str:
    return collection if isinstance(collection, str) else json.dumps(dict(collection))


def _fingerprint(folder: Path) -> str | None:
    """The fingerprint of the test collection that the run wrote down."""
    file = folder / DATA
    try:
        return str(json.loads(file.read_text(encoding="utf8"))["collections"]["test"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _bases(folder: Path) -> Iterator[Path]:
    """Where the recipe may have been: as the run recorded it, as its command names it, here, the run's own folders."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf8"))
        recorded = [folder / str(summary["base"])] if "base" in summary else []
        words = shlex.split(str(summary["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        recorded, words = [], []
    places = [*recorded, *(Path(word).parent for word in words if word.endswith(".toml"))]
    seen: set[Path] = set()
    for place in (*places, Path(), folder, folder.parent, folder.parent.parent):
        if place.resolve() not in seen:
            seen.add(place.resolve())
            yield place
