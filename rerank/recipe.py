"""A recipe is one TOML file: data, retrieval, teacher, models, stages, evaluation.

    name = "scifact"
    [data]
    train = "../data/scifact#train"
    test = "../data/scifact#test"
    [teacher]
    kind = "fused"
    [[models]]
    kind = "cross-encoder"
    [clone]
    loss = "rank_net"
    [refine]
    reward = "nDCG@10"

Every key is a field of a dataclass below; an unknown key is an error that names the nearest known one. Paths are
relative to the recipe's folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from rerank.engine.precision import PRECISIONS
from rerank.errors import InputError, NotFound, RecipeError, nearest
from rerank.evaluation.measures import parse_measure
from rerank.toml import built, parsed
from rerank.training.clone import Clone
from rerank.training.refine import Refine

T = TypeVar("T")

CONTROLS: dict[str, tuple[str, ...]] = {
    "labels": ("labels",),
    "standard": (
        "labels",
        "labels list_net",
        "labels rank_net",
        "labels softmax",
        "labels tempered",
        "longer clone",
        "random reward",
        "shuffled reward",
        "inverted reward",
        "shuffled teacher",
    ),
}
CONTROLS["all"] = (
    *CONTROLS["standard"],
    "refined only",
    "refined rloo",
    "refined grpo",
    "labels refined",
    "labels longer",
)
"""What `controls` may name: the arms that a run has beside clone and refined (`experiment.arms` says what they are)."""

READS_LISTS = ("listwise", "generative")
"""Kinds of models that are shown several candidates at once."""
ONLY_OF: dict[str, tuple[str, ...]] = {
    "pooling": ("cross-encoder",),
    "max_length": ("cross-encoder",),
    "windows": ("cross-encoder",),
    "dropout": ("cross-encoder",),
    "hidden": ("light",),
    "lora": ("cross-encoder", *READS_LISTS),
    "naming": ("generative",),
    "writing": ("generative",),
    **dict.fromkeys(
        ("window", "document_tokens", "query_tokens", "windowing", "chat", "prompt", "checkpointing"), READS_LISTS
    ),
}
"""Settings of `[[models]]` that not every kind has."""
OF_OTHERS = ("plain_weight", "first_stage_learning_rate", "head_learning_rate", "fit_first_stage")
"""Settings of stages for what a generative model has not: heads, and first-stage scores beside its own."""
WITHOUT_SCORES = ("chat", "recorded")
"""Kinds of teachers whose orderings have no scores."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")
RETRIEVERS = ("bm25", "dense")


def _check_weights(weights: Mapping[str, Any], retrievers: tuple[str, ...], where: str) -> None:
    for name, weight in weights.items():
        if name not in retrievers:
            raise RecipeError(f"{where}: no retriever {name!r}{nearest(name, retrievers)}")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise RecipeError(f"{where}.{name} = {weight!r} must be a finite number")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where one set of queries comes from."""

    collection: str | Mapping[str, Any]
    """What `data.load_collection` reads: a BEIR folder `PATH#SPLIT`, `ir_datasets:ID`, `code#SPLIT`, a table."""
    run: str | None = None
    """A stored first stage (TREC, MS MARCO or RankLLM) instead of retrieval."""
    teachers: tuple[str, ...] = ()
    """Recorded orderings of these queries (TREC runs or RankLLM JSON)."""
    candidates: Literal["retrieved", "judged"] = "retrieved"
    """What is reranked: what the first stage finds, or the judged documents of each query (a task such as "order these
    ten answers"), in the order of the first retriever."""
    limit: int | None = None
    """Use only this many queries (the first by hash of their ids)."""
    licence: str = ""
    """Its licence or terms, for the model's card: "cc-by-sa-4.0", or a sentence; empty: the card says "not stated"."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise RecipeError(f"limit = {self.limit} must be at least 1")
        if self.candidates == "judged" and self.run is not None:
            raise RecipeError(f"candidates = 'judged' takes no run; drop run = {self.run!r}")


@dataclass(frozen=True, kw_only=True)
class Data:
    """`[data]`: what is learned from and what is reported on."""

    train: tuple[Source, ...]
    """Judged sets are cloned and refined on; sets without judgements are cloned only."""
    test: Source
    dev: float = 0.1
    """Share of the judged training queries held out to select weights and settings."""

    def __post_init__(self) -> None:
        if not self.train:
            raise RecipeError("data.train must name at least one source")
        if not 0.0 < self.dev < 1.0:
            raise RecipeError(f"data.dev = {self.dev} must be between 0 and 1: a share of the training queries")


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """`[retrieval]`: the first stage."""

    retrievers: tuple[str, ...] = ("bm25", "dense")
    encoder: str = "minilm"
    """Backbone of the dense retriever and of the light scorer."""
    index: Literal["flat", "hnsw", "ivf"] = "flat"
    fusion: Literal["rrf", "weighted"] = "rrf"
    weights: Mapping[str, float] = field(default_factory=dict)
    depth: int = 100
    """Candidates a query."""
    language: str = "english"
    """Of BM25's stemmer and stop words; `code` splits identifiers."""

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise RecipeError(f"retrieval.depth = {self.depth} must be at least 1")
        unknown = [name for name in self.retrievers if name not in RETRIEVERS]
        if unknown or len(set(self.retrievers)) < len(self.retrievers):
            raise RecipeError(f"retrieval.retrievers = {list(self.retrievers)}: each of {list(RETRIEVERS)}, once")
        _check_weights(self.weights, self.retrievers, "retrieval.weights")


@dataclass(frozen=True, kw_only=True)
class TeacherChoice:
    """`[teacher]`: whose orderings are cloned."""

    kind: Literal["fused", "recorded", "scored", "judged", "chat"] = "fused"
    weights: Mapping[str, float] = field(default_factory=dict)
    """fused: weight of each retriever's standardised score (default: all 1)."""
    model: str | None = None
    """scored: a cross-encoder, bi-encoder or listwise model, by folder or hub id."""
    chat: Mapping[str, Any] = field(default_factory=dict)
    """chat: url, model and the other settings of `rerank.teachers.ChatSettings`."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """`[[models]]`: what is trained; several are trained one after another on the same lists."""

    kind: Literal["cross-encoder", "light", "listwise", "generative"] = "cross-encoder"
    """A transformer that reads pairs; a head on frozen vectors; a language model that ranks a prompt of candidates in
    one pass; one that writes their order."""
    name: str = ""
    """How the table calls it; empty where there is only one."""
    backbone: str = "minilm"
    """A folder or hub id: an encoder or cross-encoder; listwise, generative: a causal language model."""
    pooling: Literal["mean", "cls"] = "mean"
    max_length: int = 256
    """cross-encoder: tokens of a pair."""
    hidden: int = 64
    """light: width of the head."""
    windows: int = 1
    """cross-encoder: how many windows of `max_length` a longer document is read in, its best one counting (MaxP)."""
    dropout: float = 0.0
    """cross-encoder: of the transformer while it learns (its random numbers cost a quarter of a CPU's time)."""
    lora: int = 0
    """Rank of the low-rank adapters that learn in place of the transformer's own weights, 0 for none (extra `lora`);
    they want about ten times its `learning_rate`. A saved cross-encoder has them merged into its weights, a saved
    language model is the adapters alone."""
    window: int = 20
    """listwise, generative: candidates in one prompt."""
    document_tokens: int = 128
    """listwise, generative: tokens of each document; the rest is cut."""
    query_tokens: int = 128
    """listwise, generative: likewise of the query."""
    windowing: str | Mapping[str, Any] = "sliding"
    """listwise, generative: how longer lists are ranked: full, sliding, disjoint, tournament or setwise, or a table
    such as { name = "sliding", stride = 10 }."""
    naming: Literal["letters", "numbers"] = "letters"
    """generative: what candidates are called; a listwise model needs letters."""
    chat: bool | Literal["auto"] = "auto"
    """listwise, generative: whether the prompt is put into the model's chat template; auto: where it has one."""
    prompt: Mapping[str, Any] = field(default_factory=dict)
    """listwise, generative: words of your own: instruction, request, fenced (see `prompting.prompts.Prompt`)."""
    writing: Mapping[str, Any] = field(default_factory=dict)
    """generative: places, constrained, thinking, answer_tokens (see `models.language.answering.Writing`)."""
    checkpointing: bool = False
    """listwise, generative: compute activations again in the backward pass instead of keeping them."""
    precision: str = "auto"
    first_stage: Literal["auto", "on", "off"] = "auto"
    """Whether first-stage scores are part of the score; auto decides on the dev lists after cloning."""
    licence: str = ""
    """Under which the model is handed on, for its card: an id of the hub such as "apache-2.0", or a name; empty: the
    card says "not stated". What it is made from (backbone, data, teacher) may bind you."""
    dev_lists: int | None = None
    """Use only this many dev lists, where measuring all would take longer than learning."""
    depth: int | None = None
    """Candidates that are reranked; the rest keep their first-stage order below them."""
    clone: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from `[clone]` for this model; `refine` and `control` likewise."""
    refine: Mapping[str, Any] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)

    def _check_reading(self, where: str) -> None:
        if not 1 <= self.windows <= 1000:
            raise RecipeError(f"{where}: windows = {self.windows} must be from 1 (cut) to 1000")
        for name, value in _changed(self).items():
            kinds = ONLY_OF.get(name)
            if kinds is not None and self.kind not in kinds:
                raise RecipeError(
                    f"{where}: {name} = {value!r} is of kind {' or '.join(kinds)}; this model is of kind {self.kind}"
                )
        if self.window < 2:
            raise RecipeError(f"{where}: window = {self.window} must be at least 2 candidates, to be compared")
        if self.kind == "generative" and self.first_stage == "on":
            raise RecipeError(
                f"{where}: first_stage = 'on' adds first-stage scores to a model's own, and a generative model, which "
                "writes its ranking, has none: leave it out"
            )
        if not 0 <= self.lora <= 1024:
            raise RecipeError(f"{where}: lora = {self.lora} must be a rank from 0 (none) to 1024; 16 is usual")

    def __post_init__(self) -> None:
        where = f"model {self.name!r}" if self.name else "model"
        if self.name and not NAME.fullmatch(self.name):
            raise RecipeError(f"{where}: a name is letters, digits, spaces, '.', '_' and '-'")
        for name in ("depth", "dev_lists", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{where}: {name} = {value} must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise RecipeError(f"{where}: dropout = {self.dropout} must be at least 0 and below 1")
        if self.max_length < 8:
            raise RecipeError(f"{where}: max_length = {self.max_length} must be at least 8 tokens")
        self._check_reading(where)
        if self.precision not in ("auto", *PRECISIONS):
            raise RecipeError(f"{where}: precision {self.precision!r}{nearest(self.precision, ['auto', *PRECISIONS])}")
        if self.kind == "light" and self.backbone != Model.backbone:
            raise RecipeError(f"{where}: a light model takes its encoder from retrieval.encoder; drop backbone")
        if self.reads_lists and self.backbone == Model.backbone:
            raise RecipeError(
                f"{where}: a {self.kind} model needs backbone = a causal language model, e.g. Qwen/Qwen3-0.6B"
            )

    @property
    def reads_lists(self) -> bool:
        """Whether it is a language model that is shown several candidates at once."""
        return self.kind in READS_LISTS

    def heeds(self, setting: str) -> bool:
        """Whether a setting of its stages, one of those that some models do without, has an effect."""
        if setting == "malformed_price":
            return self.kind == "generative" and not self.writing.get("constrained", True)
        return self.kind != "generative" or setting not in OF_OTHERS


def _why_not(name: str) -> str:
    """Why a setting of a stage has no effect, and what to do."""
    if name == "malformed_price":
        return (
            "only a generative model with writing = { constrained = false } can write a malformed answer; leave it out"
        )
    return "a generative model has neither a head nor first-stage scores beside its own; leave it out"


def _changed(model: Model) -> dict[str, Any]:
    """The settings that are not what they are when nothing is said."""
    plain = {f.name: f.default if f.default is not MISSING else {} for f in fields(Model)}
    return {name: getattr(model, name) for name, value in plain.items() if getattr(model, name) != value}


@dataclass(frozen=True, kw_only=True)
class CalibrationChoice:
    """`[calibrate]`: what turns the refined model's scores into probabilities; it never changes a ranking."""

    kind: Literal["affine", "isotonic", "none"] = "affine"
    level: int = 1
    """The lowest grade that counts as relevant."""

    def __post_init__(self) -> None:
        if self.level < 1:
            raise RecipeError(f"calibrate.level = {self.level} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`[evaluation]`: what the table shows; the first measure decides."""

    measures: tuple[str, ...] = ("nDCG@10", "RR@10", "AP", "R@100", "P@10", "Judged@10")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. `[control]` holds what the control on the same labels does differently from `[refine]`."""

    name: str
    """Of the run: its folder is runs/NAME."""
    data: Data
    seed: int = 0
    seeds: int = 1
    """How often everything is learned, with seeds seed, seed + 1, ...; the lists stay the same."""
    controls: str | tuple[str, ...] = "labels"
    """The arms beside clone and refined: "labels", "standard", "all", or a list of their names."""
    retrieval: Retrieval = field(default_factory=Retrieval)
    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    models: tuple[Model, ...] = (Model(),)
    clone: Mapping[str, Any] = field(default_factory=dict)
    refine: Mapping[str, Any] = field(default_factory=dict)
    control: Mapping[str, Any] = field(default_factory=dict)
    calibrate: CalibrationChoice = field(default_factory=CalibrationChoice)
    evaluation: Evaluation = field(default_factory=Evaluation)
    base: Path = field(default_factory=Path)
    """Folder that relative paths start from (set by `load_recipe`)."""
    text: str = ""
    """The recipe as written (set by `load_recipe`)."""

    def __post_init__(self) -> None:
        """Wrong settings are told before any work begins."""
        if not NAME.fullmatch(self.name):
            raise RecipeError(f"name = {self.name!r} must be letters, digits, spaces, '.', '_' and '-'")
        if not self.models or not self.evaluation.measures:
            raise RecipeError("models and evaluation.measures must each hold one at least")
        folders = [model.name.replace(" ", "-") for model in self.models]
        if len(set(folders)) != len(folders):
            raise RecipeError(f"[[models]]: {len(folders)} models need different names, got {folders}; set name = ...")
        if self.seeds < 1:
            raise RecipeError(f"seeds = {self.seeds} must be at least 1")
        self._check_controls()
        for measure in self.evaluation.measures:
            parse_measure(measure)
        for model in self.models:
            self.clone_of(model), self.refine_of(model), self.control_of(model)
            self._check_loss(model)
        self._check_effects()

    def _check_loss(self, model: Model) -> None:
        if self.clone_of(model).loss == "margin_mse" and self.teacher.kind in WITHOUT_SCORES:
            raise RecipeError(
                f"[clone] loss = 'margin_mse' learns by how much a teacher prefers one candidate to another, and a "
                f"teacher of kind {self.teacher.kind!r} gives an order without scores: take rank_net, list_mle or "
                "list_net"
            )

    def _check_effects(self) -> None:
        """Settings that no model heeds are told, and not passed over; what all models share may be for some of them."""
        for stage, cls in (("clone", Clone), ("refine", Refine), ("control", Clone)):
            plain = {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]
            tables = [(getattr(self, stage), self.models), *((getattr(m, stage), (m,)) for m in self.models)]
            for table, models in tables:
                for name in (*OF_OTHERS, "malformed_price"):
                    if table.get(name, plain.get(name)) != plain.get(name) and not any(m.heeds(name) for m in models):
                        raise RecipeError(f"[{stage}] {name} = {table[name]!r} has no effect: {_why_not(name)}")

    def _check_controls(self) -> None:
        if isinstance(self.controls, str):
            if self.controls not in CONTROLS:
                raise RecipeError(f"controls = {self.controls!r} is not known{nearest(self.controls, CONTROLS)}")
            return
        for name in self.controls:
            if name not in CONTROLS["all"]:
                raise RecipeError(f"controls: there is no arm {name!r}{nearest(name, CONTROLS['all'])}")

    def clone_of(self, model: Model) -> Clone:
        """The cloning stage of one model."""
        return _stage(Clone, self._sized(model, {**self.clone, **model.clone}, "clone"), "clone")

    def refine_of(self, model: Model) -> Refine:
        """The refinement stage of one model."""
        table = self._sized(model, {**self.refine, **model.refine}, "refine")
        if isinstance(table.get("reward"), list):
            raise RecipeError(
                f"refine.reward = {table['reward']!r} must be one reward, or a table of rewards with their weights: "
                'reward = { "nDCG@10" = 0.8, "RR@10" = 0.2 }'
            )
        return _stage(Refine, table, "refine")

    def control_of(self, model: Model) -> Clone:
        """The control of one model: the same labels, steps and rates as refinement, through a supervised loss."""
        refine, own = self.refine_of(model), {**self.control, **model.control}
        if "epochs" in own:
            raise RecipeError(
                f"control.epochs = {own['epochs']!r} has no effect: the control takes as many steps as refinement; set "
                "refine.epochs for both, or control.steps"
            )
        shared = {name: value for name, value in refine.shared().items() if value is not None}
        # The control starts exactly where refinement starts: from the clone, with the weights it has.
        # A model that writes has no scores to compare; it is shown the judged order, as it is shown the teacher's.
        shared |= {"loss": "list_mle" if model.kind == "generative" else "lambda_rank", "fit_first_stage": False}
        if model.kind == "generative":
            shared |= {"anchor": 0.0, "reset_reference": 0}  # the KL of cloning is that of scores
        if own.get("anchor") == 0:
            shared |= {"reset_reference": 0}  # of the anchor that the control does without
        return _stage(Clone, self._sized(model, {**shared, **own}, "control"), "control")

    def _sized(self, model: Model, table: dict[str, Any], where: str) -> dict[str, Any]:
        """The settings of a stage with lists that fit into a prompt of the model, if it has prompts."""
        if not model.reads_lists:
            return table
        size = table.setdefault("list_size", model.window)
        if isinstance(size, int) and size > model.window:
            raise RecipeError(
                f"[{where}] list_size = {size} is more than the {model.window} candidates that model "
                f"{model.name or model.kind!r} is shown at once (window): lower it, or leave it out"
            )
        return table


def _stage(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    try:
        return built(cls, table, where)
    except RecipeError:
        raise
    except InputError as error:
        raise RecipeError(f"[{where}] {error}") from error


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file."""
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"there is no recipe {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8; save the recipe as UTF-8") from None
    return parse_recipe(text, path.parent, str(path))


def parse_recipe(text: str, base: Path, where: str = "recipe") -> Recipe:
    """The recipe in a TOML text; relative paths start from `base`."""
    table = parsed(text, where)
    try:
        return replace(built(Recipe, _with_sources(table), "", hidden=("base", "text")), base=base, text=text)
    except InputError as error:
        raise RecipeError(f"{where}: {error}") from error


def _with_sources(table: Mapping[str, Any]) -> dict[str, Any]:
    """`train` and `test` may be a string, a table or a list of these; here each becomes a table of `Source`."""
    table = dict(table)
    if isinstance(table.get("data"), Mapping):
        data = dict(table["data"])
        if "train" in data:
            train = data["train"] if isinstance(data["train"], list) else [data["train"]]
            data["train"] = [_source(entry) for entry in train]
        if "test" in data:
            data["test"] = _source(data["test"])
        table["data"] = data
    return table


def _source(entry: Any) -> Any:
    if isinstance(entry, str):
        return {"collection": entry}
    if isinstance(entry, Mapping) and "collection" not in entry:
        own = {f.name for f in fields(Source)}
        inner = {k: v for k, v in entry.items() if k not in own}
        return {**{k: v for k, v in entry.items() if k in own}, "collection": inner}
    return entry
