"""How a language model reads lists: settings of listwise and generative rerankers, in recipes and in `rerank.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, final, get_args

from rerank.errors import DataError, InputError, nearest
from rerank.models.language.prompt_tokens import Naming, PromptTokenizer
from rerank.prompting.prompts import THOUGHTFUL, Prompt
from rerank.prompting.windows import Sliding, Windowing, windowing_named


@final
@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is shown at once, in which words, and what becomes of lists that are longer."""

    window: int = 20
    """Candidates in one prompt."""
    document_tokens: int = 128
    """Tokens of each document; the rest is cut."""
    query_tokens: int = 128
    windowing: Windowing = field(default_factory=Sliding)
    """How lists of more than `window` candidates are ranked."""
    naming: Naming = "letters"
    chat: bool = False
    """Whether the prompt is put into the model's chat template (rendered in a sandbox)."""
    prompt: Prompt = field(default_factory=Prompt)

    def prompts(self, tokenizer: Any, thinking: bool = False) -> PromptTokenizer:
        """The tokenizer of prompts that are read so; with `thinking`, of those that ask for a thought first."""
        prompt = THOUGHTFUL if thinking and self.prompt == Prompt() else self.prompt
        sizes = (self.window, self.document_tokens, self.query_tokens)
        return PromptTokenizer(tokenizer, *sizes, self.naming, prompt, self.chat, thinking=thinking)

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` takes, for a JSON file."""
        made = {f.name: getattr(self, f.name) for f in fields(self)}
        return made | {"windowing": windowing_as_dict(self.windowing), "prompt": asdict(self.prompt)}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Reading:
        """The settings in a table; a wrong one is an InputError that names it."""
        if not isinstance(table, Mapping):
            raise InputError(f"how lists are read is a table of settings such as {{'window': 20}}, not {table!r:.80}")
        known = {f.name for f in fields(cls)}
        unknown = [name for name in table if name not in known]
        if unknown:
            hint = nearest(str(unknown[0]), sorted(known))
            raise InputError(f"{unknown[0]!r} is no setting of how lists are read{hint}")
        settings = dict(table)
        if "windowing" in table:
            settings["windowing"] = windowing_of(table["windowing"])
        if "prompt" in table:
            settings["prompt"] = _prompt_of(table["prompt"])
        for name in ("window", "document_tokens", "query_tokens"):
            value = settings.get(name, 2)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(settings.get("chat", False), bool):
            raise InputError(f"chat must be true or false, not {settings['chat']!r}")
        if settings.get("naming", "letters") not in get_args(Naming):
            raise InputError(f"naming must be one of {', '.join(get_args(Naming))}, not {settings['naming']!r}")
        return cls(**settings)


class ReadsLists:
    """What every scorer that is shown whole lists says of itself."""

    reading: Reading
    prompts: PromptTokenizer
    in_order = True
    """Whether what is said of candidates depends on the order in which they come."""

    def forget(self, beyond: int = 0) -> None:
        """Nothing; forgets the texts where they hold more than `beyond` bytes. Prompts that are there stay good."""
        self.prompts.forget(beyond)

    @property
    def window(self) -> int:
        """Candidates that a prompt shows at most."""
        return self.reading.window

    @property
    def windowing(self) -> Windowing:
        """How longer lists are ranked."""
        return self.reading.windowing


def saved_reading(saved: Mapping[str, Any], tokenizer: Any, changes: Mapping[str, Any] | None, file: Path) -> Reading:
    """How a model reads lists: as the settings `saved` in `file` say, in its chat's words where it has none.

    `changes` are settings that are to be others than its own.
    """
    own = saved.get("reading", {"chat": bool(getattr(tokenizer, "chat_template", None))})
    try:
        reading = Reading.from_dict(own)
    except (InputError, TypeError) as error:
        raise DataError.at(file, None, f"field 'reading': {error}: save the model anew") from error
    if not changes:
        return reading
    if not isinstance(changes, Mapping):
        raise InputError(f"reading must be a table of settings such as {{'window': 20}}, not {changes!r:.80}")
    made = Reading.from_dict(reading.as_dict() | dict(changes))
    stride = getattr(made.windowing, "stride", None)
    if "windowing" not in changes and stride is not None and stride >= made.window:
        # A stride that was meant for the model's own window would leave no overlap in a smaller one.
        return replace(made, windowing=Sliding())
    return made


def windowing_of(value: Any) -> Windowing:
    """The windowing of a name, or of a table with a `name` and settings."""
    if isinstance(value, str):
        return windowing_named(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise InputError(f"windowing must be a name, or a table with a name and its settings, not {value!r}")
    return windowing_named(value["name"], **{k: v for k, v in value.items() if k != "name"})


def windowing_as_dict(windowing: Windowing) -> dict[str, Any]:
    """What `windowing_of` takes."""
    return {"name": windowing.name, **asdict(windowing)}  # type: ignore[call-overload]


def _prompt_of(value: Any) -> Prompt:
    if not isinstance(value, Mapping):
        raise InputError(f"prompt must be a table of instruction, request and fenced, not {value!r}")
    known = {f.name: f.type for f in fields(Prompt)}
    for name, given in value.items():
        if name not in known:
            raise InputError(f"prompt: {name!r} is not known{nearest(name, sorted(known))}")
        if not isinstance(given, bool if name == "fenced" else str):
            raise InputError(f"prompt.{name} = {given!r} must be {'true or false' if name == 'fenced' else 'a text'}")
    return Prompt(**value)
