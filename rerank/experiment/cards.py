"""What a run adds to the card of each model that it keeps: figures with intervals and tests, training, data, licences.

Names of arms, collections and teachers come from recipes and files; they are escaped wherever they stand in a card.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rerank.errors import RerankError
from rerank.evaluation import Cell, Table
from rerank.experiment.arms import CLONE, REFINED
from rerank.experiment.lists import Lists
from rerank.experiment.training import Trained, arm_name, model_folder
from rerank.experiment.workspace import Workspace
from rerank.models.backbones import backbone_path
from rerank.models.card import Told, escaped, fenced, folded, hub_id, write_card
from rerank.recipe import Model, Recipe, Source

LANGUAGES = {
    **{"arabic": "ar", "catalan": "ca", "danish": "da", "dutch": "nl", "english": "en", "finnish": "fi"},
    **{"french": "fr", "german": "de", "greek": "el", "hindi": "hi", "hungarian": "hu", "indonesian": "id"},
    **{"italian": "it", "norwegian": "no", "portuguese": "pt", "romanian": "ro", "russian": "ru", "serbian": "sr"},
    **{"spanish": "es", "swedish": "sv", "tamil": "ta", "turkish": "tr", "porter": "en", "code": "code"},
}
"""Language of BM25's stemmer -> what the hub calls it."""
LICENCES = frozenset(
    """apache-2.0 mit openrail openrail++ bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
    bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma""".split()
)
"""What the hub knows by name; any other licence is `other` there, with its name."""
HUB_DATASETS = {"msmarco-passage": "microsoft/ms_marco"}
"""First part of an id of ir_datasets -> the hub's id; BEIR's sets are told by a rule."""


def write_cards(
    work: Workspace, models: Sequence[Trained], lists: Lists, table: Table, summary: Mapping[str, Any]
) -> None:
    """Nothing; writes the card of each model that was saved up to now."""
    for model, found in zip(work.recipe.models, models, strict=False):
        folder = model_folder(work.out, model)
        if found.kept_seed is not None and folder.is_dir():
            write_card(
                folder, told(work.recipe, model, found, lists, table, summary), base=_backbone(work.recipe, model)
            )


def told(recipe: Recipe, model: Model, found: Trained, lists: Lists, table: Table, summary: Mapping[str, Any]) -> Told:
    """What the run knows of one of its models."""
    base = hub_id(_backbone(recipe, model))
    made = _linked(base, _backbone_name(recipe, model))
    title = f"{recipe.name}, {model.name}" if model.name else recipe.name
    stages = "cloning a teacher's orderings, then refining by exact policy gradients"
    return Told(
        title=escaped(title),
        origin=" ".join(
            [
                f"It was made from {made} by {stages if model.kind != 'generative' else 'cloning, then refining'}.",
                *_nothing_learned(found, model),
            ]
        ),
        results=_results(recipe, model, found, lists, table),
        training=_training(recipe, model, found, lists, summary),
        first_stage=_first_stage(recipe, model),
        limits=_limits(recipe, lists, table),
        data=_data(recipe, model, lists, base),
        versions=_versions(lists, summary),
        header=header(recipe, model, lists, table),
    )


def header(recipe: Recipe, model: Model, lists: Lists, table: Table) -> dict[str, Any]:
    """The fields of the card's YAML header that a run knows; `model-index` holds the refined model's own figures."""
    from huggingface_hub import EvalResult

    refined = arm_name(model, REFINED)
    rows = ((refined, "as trained"), (f"{refined} alone", "without first-stage scores"))
    fact = lists.facts["test"]
    results = [
        EvalResult(
            task_type="text-ranking",
            dataset_type=hub_dataset(recipe.data.test) or _slug(fact["name"]),
            dataset_name=fact["name"],
            dataset_revision=fact["fingerprint"],
            metric_type=measure.casefold(),
            metric_name=measure,
            metric_value=round(cell.mean, 6),
            metric_config=config,
            metric_args=_evidence(cell, table, arm),
        )
        for arm, config in rows
        for measure, cell in table.arms.get(arm, {}).items()
    ]
    trained_on = [name for name in map(hub_dataset, recipe.data.train) if name is not None]
    known = {
        "model_name": _slug(f"{recipe.name}-{model.name}" if model.name else recipe.name),
        "datasets": list(dict.fromkeys(trained_on)) or None,
        "language": LANGUAGES.get(recipe.retrieval.language) if "bm25" in recipe.retrieval.retrievers else None,
        "eval_results": results or None,
    }
    return {**{key: value for key, value in known.items() if value is not None}, **licence_fields(model.licence)}


def licence_fields(licence: str) -> dict[str, str]:
    """The header's fields of a licence: the hub's own id, or `other` with a name; none for one that is not stated."""
    name = licence.strip()
    if not name:
        return {}
    if name.casefold() in LICENCES:
        return {"license": name.casefold()}
    link = re.search(r"https?://\S+", name)
    words = _slug(name.replace(link[0], "") if link else name) or "own-terms"
    return {"license": "other", "license_name": words[:60], **({"license_link": link[0]} if link else {})}


def _evidence(cell: Cell, table: Table, arm: str) -> dict[str, Any]:
    return {
        "interval": [round(cell.low, 6), round(cell.high, 6)],
        "level": 0.95,
        "queries": table.queries,
        "seeds": table.seeds.get(arm, 1),
    }


def _results(recipe: Recipe, model: Model, found: Trained, lists: Lists, table: Table) -> str:
    """The table with intervals and the tests on its first measure, and the sentences that follow."""
    names = {arm: _cell(arm) for arm in table.arms}
    primary = table.measures[0]
    shown = replace(
        table,
        arms={names[arm]: cells for arm, cells in table.arms.items()},
        comparisons=[
            replace(c, arm=names[c.arm], against=names[c.against]) for c in table.comparisons if c.measure == primary
        ],
        seconds={},
        seeds={names[arm]: n for arm, n in table.seeds.items()},
        per_query={},
    )
    seeds = table.seeds.get(arm_name(model, REFINED), 1)
    kept = (
        f"Figures of trained arms are means over {seeds} seeds; the weights here are those of seed {found.kept_seed}, "
        "the best of them on the dev lists."
        if seeds > 1
        else ""
    )
    test = escaped(lists.facts["test"]["name"])
    return "\n\n".join(
        filter(
            None,
            (
                f"This model is the row *{escaped(arm_name(model, REFINED))}*, measured on {test}: candidates of the "
                f"first stage, ranked anew. {kept}".strip(),
                shown.to_markdown().strip(),
                "\n".join(f"- {sentence}" for sentence in shown.verdict()),
            ),
        )
    )


def _training(recipe: Recipe, model: Model, found: Trained, lists: Lists, summary: Mapping[str, Any]) -> str:
    """Teacher, stages, steps and seeds, and the recipe behind a line that opens it."""
    clone, refine = recipe.clone_of(model), recipe.refine_of(model)
    reward = escaped(refine.reward if isinstance(refine.reward, str) else " + ".join(refine.reward))
    whose = f" (`{_code(recipe.teacher.model)}`)" if recipe.teacher.model else ""
    whose = f" ({escaped(str(recipe.teacher.chat.get('model')))})" if recipe.teacher.kind == "chat" else whose
    lines = [
        f"- teacher: {recipe.teacher.kind}{whose}",
        f"- clone: loss {escaped(clone.loss)}{_steps(found, model, CLONE)}",
        f"- refine: reward {reward}, estimator {escaped(refine.estimator)}{_steps(found, model, REFINED)}",
        f"- dev lists that select steps: {len(lists.dev)}",
        f"- seeds: {', '.join(map(str, summary.get('seeds', [recipe.seed])))}; kept: {found.kept_seed}",
    ]
    return "\n".join(lines) + "\n\n" + folded("The recipe", fenced(recipe.text, "toml"))


def _steps(found: Trained, model: Model, stage: str) -> str:
    known = found.learned.get(arm_name(model, stage), {}).get(found.kept_seed or 0, {})
    told = [f", {known['lists']} lists" if "lists" in known else ""]
    told += [f", {known['steps']} steps, best after {known['best_step']}" if "best_step" in known else ""]
    return "".join(told)


def _nothing_learned(found: Trained, model: Model) -> Iterator[str]:
    """What must be said first of a model whose stages handed over what they began with."""
    seed = found.kept_seed or 0
    best = [found.learned.get(arm_name(model, stage), {}).get(seed, {}).get("best_step") for stage in (CLONE, REFINED)]
    if best == [0, 0]:
        yield (
            "**No step of either stage ranked the held-out lists better than what it began with: the network is as it "
            "was before, and nothing was learned but the weights of first-stage scores, where it reads those.**"
        )
    elif best[1] == 0:
        yield "**No step of refinement ranked the held-out lists better than the clone: this is the clone.**"


def _first_stage(recipe: Recipe, model: Model) -> str:
    retrieval, run = recipe.retrieval, recipe.data.test.run
    kinds = " and ".join(retrieval.retrievers)
    how = f", fused by {retrieval.fusion}" if len(retrieval.retrievers) > 1 else ""
    made = f"the stored run `{_code(Path(run).name)}`" if run else f"{kinds}{how}"
    if recipe.data.test.candidates == "judged":
        made = f"the judged documents of each query, in the order of {retrieval.retrievers[0]}"
    depth = retrieval.depth if model.depth is None else min(model.depth, retrieval.depth)
    stemmed = f" BM25's stemmer is that of {escaped(retrieval.language)}." if "bm25" in retrieval.retrievers else ""
    return f"Candidates: {made}, up to {retrieval.depth} a query, of which {depth} are reranked.{stemmed}"


def _limits(recipe: Recipe, lists: Lists, table: Table) -> tuple[str, ...]:
    """Collection and lengths that the figures speak of."""
    texts = {text for c in lists.test.lists for text in c.texts}
    words = sorted(len(text.split()) for text in texts)
    fact, retrieval = lists.facts["test"], recipe.retrieval
    language = f", read by BM25 as {escaped(retrieval.language)}" if "bm25" in retrieval.retrievers else ""
    found = [
        f"Measured on {escaped(fact['name'])} alone ({fact['documents']} documents, {table.queries} judged "
        f"queries{language}); nothing is known of other collections, kinds of queries or languages."
    ]
    if words:
        high = words[int(0.95 * (len(words) - 1))]
        found.append(
            f"Half of the documents that it ranked there have up to {statistics.median_low(words)} words, 95 % up to "
            f"{high}; longer ones were hardly seen."
        )
    return tuple(found)


def _data(recipe: Recipe, model: Model, lists: Lists, base: str | None) -> str:
    """Each source with its fingerprint and licence, and what binds the model."""
    numbered = [
        (f"train {i}" if len(recipe.data.train) > 1 else "train", s) for i, s in enumerate(recipe.data.train, 1)
    ]
    rows = ["| part | collection | documents | queries | fingerprint | licence |", "|---|---|---:|---:|---|---|"]
    for part, source in [*numbered, ("test", recipe.data.test)]:
        fact = lists.facts[part]
        name = escaped(fact["name"])
        licence = escaped(source.licence) if source.licence.strip() else f"not stated: look at the terms of {name}"
        rows.append(
            f"| {part} | {name} | {fact['documents']} | {fact['queries']} | `{fact['fingerprint']}` | {licence} |"
        )
    stated = escaped(model.licence) if model.licence.strip() else "not stated"
    origin = _linked(base, _backbone_name(recipe, model))
    bound = [f"the backbone {origin}", "the training data above"]
    bound += ["the teacher whose orders were cloned"] if recipe.teacher.kind in ("chat", "scored", "recorded") else []
    listed = ", ".join(bound[:-1]) + f" and {bound[-1]}"
    return (
        "\n".join(rows)
        + f"\n\nLicence of this model: {stated}. It may be bound by the terms of {listed}: look at them."
    )


def _versions(lists: Lists, summary: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{escaped(name)} {escaped(number)}" for name, number in summary.get("versions", {}).items())
    command = str(summary.get("command") or "").strip()
    exact = f"The command:\n\n{fenced(command, 'sh')}" if command else "It was trained from Python (`rerank.train`)."
    prints = ", ".join(f"{part} `{fact['fingerprint']}`" for part, fact in lists.facts.items())
    return f"{exact}\n\nVersions: {versions}.\n\nFingerprints of the data: {prints}."


def _backbone(recipe: Recipe, model: Model) -> str | None:
    """Where the weights that it began with are."""
    name = _backbone_name(recipe, model)
    try:
        return backbone_path(name)
    except RerankError:  # moved since, which is no reason to lose a finished run's card
        return None


def _backbone_name(recipe: Recipe, model: Model) -> str:
    return recipe.retrieval.encoder if model.kind == "light" else model.backbone


def _linked(base: str | None, name: str) -> str:
    """A backbone as a card names it; of a folder its own name alone, for where it lies here helps nobody."""
    return f"[{base}](https://huggingface.co/{base})" if base else f"the local model {escaped(Path(name).name)}"


def hub_dataset(source: Source) -> str | None:
    """The hub's id of a source's data, where one is known."""
    name = source.collection if isinstance(source.collection, str) else ""
    first, *rest = name.removeprefix("ir_datasets:").split("/")
    if not name.startswith("ir_datasets:"):
        return None
    return f"BeIR/{rest[0]}" if first == "beir" and rest else HUB_DATASETS.get(first)


def _cell(text: str) -> str:
    """Escaped for a table, whose writer escapes the bars."""
    return escaped(text).replace("\\|", "|")


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").casefold()
