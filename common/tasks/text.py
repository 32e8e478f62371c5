"""What the tasks on rows of text share: reading and checking rows, templates, the mask by characters."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import Field, field_validator, model_validator

from common.action_space import ActionSpace
from common.automata import Unusable
from common.chat import Chat, Message, is_conversation, split_turn
from common.errors import UserError
from common.expressions import parsed
from common.own_reward import OwnRewardSection
from common.places import Kind, Place
from common.row import BadRow, Row
from common.rows import HUB, Loaded, OnBadRow, OnOverlap, load, overlap
from common.tasks.base import Split, Task, TaskConfig, TokenCodec, one_token, unreadable
from common.templates import fill
from common.tools import ToolBox, ToolSection
from common.trajectory import Query


class TextConfig(TaskConfig):
    """Settings of all tasks on rows of text."""

    train_path: Annotated[str, Place(Kind.ROWS)] = Field(
        description="rows to train on: a .jsonl, .json, .csv, .tsv, .txt or .parquet file, or hf://owner/name:split"
    )
    test_path: Annotated[str | list[str] | None, Place(Kind.ROWS)] = Field(
        None, description="rows to evaluate on; without it the last `test_size` rows of train_path are held out"
    )
    limit: int | None = Field(None, ge=1, description="use the first so many rows of train_path; all without it")
    test_size: int = Field(20, ge=1, description="rows of each test file; of train_path at most a fifth is held out")
    test_skip: int = Field(
        0,
        ge=0,
        description="rows of each file of test_path that are passed over first, e.g. to choose settings on other rows "
        "than those that they are judged by",
    )
    on_bad_row: OnBadRow = Field("refuse", description="rows that can't be used: refuse to start, or skip them")
    on_overlap: OnOverlap = Field(
        "report", description="test rows that stand among the training rows: report, remove them, or refuse to start"
    )
    min_len: int = Field(1, ge=0, description="tokens before the rationale may end")
    max_len: int = Field(20, ge=1, description="tokens at which the rationale is ended")
    terminator: str | None = Field(
        ".",
        description="the text, one token, that ends the rationale. null, with `chat` alone: the end of the assistant's "
        "turn, as where `chat` is set, this isn't, and no target follows the rationale",
    )
    chat: bool | str | None = Field(
        None,
        description="true: prompts are a user's messages, rendered by the tokenizer's own chat template; a text is the "
        "system message before them",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="variables of the chat template, e.g. {enable_thinking: false}"
    )
    allowed_characters: str | None = Field(
        r"[A-Za-z0-9 ,'\-]",
        description="a regular expression for one character; tokens with any other character are masked out. null: any",
    )
    forbidden: list[str] = Field([], description="texts of single tokens that are masked out besides, e.g. [' Mr']")
    reward: OwnRewardSection | None = Field(
        None, description="a reward function of your own, my_file.py:function or the settings below; added to log R"
    )

    @field_validator("train_path", "test_path", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("test_path")
    @classmethod
    def _names_files(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == []:
            raise ValueError("names no file: leave it out to hold out rows of train_path, or name one")
        return value

    @model_validator(mode="after")
    def _skips_rows_of_a_file(self) -> Self:
        if self.test_skip and self.test_path is None:
            raise ValueError("test_skip passes over rows of test_path, and there is none: give one, or leave it out")
        return self

    @field_validator("chat", mode="before")
    @classmethod
    def _said_as_a_word(cls, value: Any) -> Any:
        """The command line and the environment say true as they say a text."""
        return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value

    @field_validator("allowed_characters")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            parsed(value or "")
        except Unusable as error:
            raise ValueError(f"{error.problem}: {error.remedy}") from error
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is no regular expression ({error})") from error
        return value

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.chat and "terminator" not in self.model_fields_set and getattr(self, "target", None) is None:
            # Set, so that the run's own configuration says so too.
            self.terminator = None
        if not self.chat:
            if self.terminator is None:
                raise ValueError("terminator: null is the end of a chat's turn: give a text, or set chat")
            if self.chat_template_kwargs:
                raise ValueError("chat_template_kwargs are a chat template's: set chat")
        return self


@dataclass(frozen=True)
class Example:
    """A usable row: its query, and its rationale where it has one."""

    query: Query
    rationales: tuple[str, ...] = ()
    """All that its rows hold."""
    no_rationale: str | None = None
    """Why there is none, where the task asks for one."""
    number: int = 0
    """Of its first row, a line or a record of the file."""

    def with_rationales_of(self, other: Example) -> Example:
        """With what another row of the same query adds; itself, where that is nothing."""
        new = tuple(text for text in other.rationales if text not in self.rationales)
        return replace(self, rationales=self.rationales + new, no_rationale=None) if new else self


TextConfigT = TypeVar("TextConfigT", bound=TextConfig)


class TextTask(Task[TextConfigT]):
    """Queries from rows. A subclass says how a row becomes an example; what it refuses with BadRow is reported."""

    @abstractmethod
    def example(self, row: Row) -> Example:
        """The query of a row; raises BadRow."""

    @property
    def own_reward(self) -> OwnRewardSection | None:
        return self.config.reward

    @cached_property
    def chat(self) -> Chat | None:
        given = self.config.chat
        if given is None or given is False:
            return None
        return self.codec.chat(None if given is True else given, self.config.chat_template_kwargs)

    @property
    def _end_of_turn(self) -> int:
        # Without a chat the configuration refuses a terminator that is null.
        assert self.chat is not None
        return self.chat.end_of_turn

    @property
    def terminator(self) -> str:
        """What ⊤ writes: nothing where it is the end of a turn."""
        return self.config.terminator or ""

    def messages(self, row: Row, column: str) -> tuple[list[Message], str | None] | None:
        """A conversation that a chat's row holds in a column: what comes before the assistant's last turn, and that
        turn where it is there; None if the column holds something else. Raises BadRow."""
        value = row.values.get(column)
        if self.chat is None or not is_conversation(value):
            return None
        try:
            return split_turn(value)
        except BadRow as error:
            raise BadRow(f"column {column!r}: {error}") from error

    @cached_property
    def tool(self) -> ToolBox | None:
        section = self.tool_section
        return None if section is None else ToolBox(section)

    @property
    def tool_section(self) -> ToolSection | None:
        """The configured tool."""
        return None

    @cached_property
    def action_space(self) -> ActionSpace:
        config, section = self.config, self.tool_section
        return character_space(
            self.codec,
            terminator=self._end_of_turn if config.terminator is None else config.terminator,
            characters=config.allowed_characters,
            min_len=config.min_len,
            max_len=config.max_len,
            forbidden=config.forbidden,
            trigger=None if section is None else section.trigger,
        )

    def queries(self, split: Split) -> list[Query]:
        train, test = self.examples
        return [example.query for example in (train if split == "train" else test)]

    @cached_property
    def examples(self) -> tuple[list[Example], list[Example]]:
        """Training and test examples."""
        config, (train, test) = self.config, self._split
        if not test:
            # A handful of rows leaves nothing to hold out: they are evaluated on themselves.
            return train, train
        setting, given, whose = (
            ("task.train_path", config.train_path, f"the last {len(test)}, which are held out,")
            if config.test_path is None
            else ("task.test_path", config.test_path, f"its {len(test)} rows")
        )
        seen = self._seen
        if seen and config.on_overlap == "refuse":
            problem = f"{len(seen)} of {whose} have the prompt of a training row"
            raise UserError(setting, given, problem, "take them out, or set task.on_overlap: remove")
        if seen and config.on_overlap == "remove":
            test = [example for i, example in enumerate(test) if i not in set(seen)]
            if not test:
                raise UserError(setting, given, f"{whose} all have the prompt of a training row", "give test rows")
        return train, test

    def held_out(self, n: int) -> int:
        """How many of `n` training rows, the last ones, are test rows."""
        return min(self.config.test_size, n // 5) if self.config.test_path is None else 0

    @cached_property
    def _split(self) -> tuple[list[Example], list[Example]]:
        """Training examples and all test examples, of the files each once, or those that are held out, which may be
        none; before any is removed."""
        items = self._train.items
        if self.config.test_path is not None:
            given = {example.query.id: example for loaded in self._test for example in loaded.items}
            return items, list(given.values())
        kept = len(items) - self.held_out(len(items))
        return items[:kept], items[kept:]

    @cached_property
    def _seen(self) -> list[int]:
        """Which test examples have the prompt of a training example."""
        return self._overlap(*self._split)

    @staticmethod
    def _overlap(train: Sequence[Example], test: Sequence[Example]) -> list[int]:
        """By prompt: a test row with another label of a training prompt has been seen all the same."""

        def prompt(example: Example) -> bytes:
            return example.query.prompt_ids.tobytes()

        return overlap(map(prompt, train), [prompt(example) for example in test])

    def overlap(self) -> int:
        """How many test rows stand among the training rows too."""
        return len(self._overlap(*self.examples))

    def test_names(self) -> dict[str, list[str]]:
        """Ids of the test queries by the name of their file, or by so much of its path as tells the files apart."""
        kept = {example.query.id for example in self.examples[1]}
        names = distinct_names([loaded.rejected.source for loaded in self._test])
        return {
            name: [item.query.id for item in loaded.items if item.query.id in kept]
            for name, loaded in zip(names, self._test, strict=True)
        }

    @cached_property
    def _train(self) -> Loaded[Example]:
        return self._load("task.train_path", self.config.train_path, slice(self.config.limit))

    @cached_property
    def _test(self) -> list[Loaded[Example]]:
        given, skip = self.config.test_path or [], self.config.test_skip
        paths = [given] if isinstance(given, str) else given
        places = [path if path.startswith(HUB) else Path(path).resolve() for path in paths]
        if len(set(places)) < len(places):
            raise UserError("task.test_path", given, "names a file twice", "name each once")
        found = [self._load("task.test_path", path, slice(skip, skip + self.config.test_size)) for path in paths]
        for path, loaded in zip(paths, found, strict=True):
            if not loaded.items:
                raise UserError("task.test_skip", skip, f"leaves no row of {path}", "lower it")
        return found

    def _load(self, setting: str, path: str, part: slice) -> Loaded[Example]:
        config = self.config
        if self.max_model_len is not None and config.max_len + 3 > self.max_model_len:
            # No row could be short enough.
            raise UserError(
                "task.max_len",
                config.max_len,
                f"leaves no room for a prompt within actor.max_model_len = {self.max_model_len}",
                "lower it, or raise actor.max_model_len",
            )
        found = load(
            setting,
            path,
            self.checked_example,
            lambda example: example.query.id,
            config.on_bad_row,
            Example.with_rationales_of,
        )
        return replace(found, items=found.items[part])

    def checked_example(self, row: Row) -> Example:
        """That of a row, held against the model's vocabulary and the engine's length; raises BadRow."""
        example = replace(self.example(row), number=row.number)
        if self.own_reward is not None:
            columns = row.as_json(self.own_reward.columns, "task.reward.columns")
            example = replace(example, query=example.query.model_copy(update={"row": columns}))
        needed = example.query.tokens_needed(self.config.max_len)
        if self.max_model_len is not None and needed > self.max_model_len:
            limit = f"{needed} tokens, more than actor.max_model_len = {self.max_model_len}"
            raise BadRow(f"prompt, rationale and target take {limit}: shorten them, or raise it")
        for what, ids in example.query.texts():
            reason = unreadable(self.codec, ids)
            if reason is not None:
                raise BadRow(f"{what}: {reason}")
        return example

    def data_notes(self) -> list[str]:
        train, test = self.examples
        notes = [f"{len(train)} training and {len(test)} test queries"]
        for loaded in (self._train, *self._test):
            if loaded.rejected.problems:
                notes.append(f"{loaded.rejected.source}: skipped {loaded.rejected.describe()}")
            if loaded.repeated:
                notes.append(f"{loaded.rejected.source}: {loaded.repeated} repeated rows are used once")
            if loaded.spanning:
                first, last = loaded.spanning[0]
                notes.append(
                    f"{loaded.rejected.source}: {len(loaded.spanning)} rows stand on several lines, as a field in "
                    f"quotes may (the first: lines {first} to {last})"
                )
        if self._seen:
            done = "removed from the test" if self.config.on_overlap == "remove" else "kept in the test"
            counts = f"{len(self._seen)} of {len(self._split[1])} test rows"
            notes.append(f"{counts} stand among the training rows: {done} (task.on_overlap)")
        if train is test:
            notes.append("too few rows to hold any out: the evaluation is on the training rows")
        without = [example.no_rationale for example in train if example.no_rationale is not None]
        if without:
            notes.append(f"{len(without)} of {len(train)} training rows hold no rationale (the first: {without[0]})")
        unusable = self.unusable_rationales()
        return notes if unusable is None else [*notes, f"no seeds are {unusable}"]

    def rationales(self) -> dict[str, list[list[int]]]:
        return self._rationales[0]

    def known_rationales(self) -> dict[str, list[list[int]]]:
        return self._known[0]

    def unusable_rationales(self) -> str | None:
        usable, reasons = self._rationales
        if not reasons:
            return None
        n = sum(map(len, usable.values())) + len(reasons)
        counted = "; ".join(f"{count} {why}" for why, count in Counter(reasons).most_common())
        return f"{len(reasons)} of {n} rationales, which the policy can't write: {counted}"

    def known_texts(self, example: Example) -> Sequence[str]:
        """Good rationales of a test example: those that it holds."""
        return example.rationales

    @cached_property
    def _rationales(self) -> tuple[dict[str, list[list[int]]], list[str]]:
        return self._usable((example.query, example.rationales) for example in self.examples[0])

    @cached_property
    def _known(self) -> tuple[dict[str, list[list[int]]], list[str]]:
        return self._usable((example.query, self.known_texts(example)) for example in self.examples[1])

    def _usable(self, given: Iterable[tuple[Query, Sequence[str]]]) -> tuple[dict[str, list[list[int]]], list[str]]:
        """Usable rationales by query, and why each of the others can't be used."""
        found: dict[str, list[list[int]]] = {}
        reasons = []
        for query, rationales in given:
            for rationale in rationales:
                ids = self.codec.encode(rationale.removesuffix(self.terminator))
                why = self._why_unusable(ids)
                if why is None:
                    found.setdefault(query.id, []).append(ids)
                else:
                    reasons.append(why)
        return found, reasons

    def _why_unusable(self, ids: Sequence[int]) -> str | None:
        """Why the policy can't write a rationale, by the setting that forbids it."""
        config, array = self.config, np.asarray(ids, np.int32)
        if self.action_space.why_invalid(array) is None:
            return None
        if len(ids) > config.max_len:
            return f"of more than task.max_len = {config.max_len} tokens"
        if len(ids) < config.min_len:
            return f"of fewer than task.min_len = {config.min_len} tokens"
        if self.action_space.terminator_id in ids:
            return "with task.terminator before the end"
        if self.action_space.grammar is not None:
            return "not of the grammar"
        return "with what task.allowed_characters or task.forbidden leaves out"

    @staticmethod
    def some(ids: list[int], what: str) -> list[int]:
        """A text's token ids as they are; raises BadRow where there are none."""
        if not ids:
            raise BadRow(f"{what} tokenises to nothing")
        return ids

    def data_figures(self) -> dict[str, Any]:
        """What a summary says of the data."""
        bad = sum(len(loaded.rejected.problems) for loaded in (self._train, *self._test))
        return {"test_prompts_seen_in_training": self.overlap(), "bad_rows": bad}


def character_space(
    codec: TokenCodec,
    *,
    terminator: str | int,
    characters: str | None,
    min_len: int,
    max_len: int,
    forbidden: Sequence[str] = (),
    trigger: str | None = None,
) -> ActionSpace:
    """Tokens of allowed characters only, special and forbidden ones left out, and the terminator, a text or a token; a
    tool is asked after those that end with `trigger`. Raises UserError naming the setting."""
    stop = terminator
    if isinstance(stop, str):
        stop = one_token(codec, stop, "task.terminator", "choose a text of one token")
    left_out = set(codec.special_ids)
    for text in forbidden:
        token = one_token(codec, text, "task.forbidden", "list texts of one token each")
        if token == stop:
            raise UserError(
                "task.forbidden", text, "forbids the terminator, so no rationale could end", "take it off the list"
            )
        left_out.add(token)
    texts = {token: codec.token_text(token) for token in range(codec.vocab_size) if token not in left_out}
    if characters is not None:
        # Each for itself: an expression may have anchors or flags of its own.
        known = set(filter(re.compile(characters).fullmatch, set().union(*texts.values())))
        texts = {token: text for token, text in texts.items() if text and known.issuperset(text)}
    allowed = set(texts)
    ids = sorted({*allowed, stop})
    triggers = [] if trigger is None else [token for token in ids if codec.token_text(token).endswith(trigger)]
    if trigger is not None and not triggers:
        raise UserError("task.tool.trigger", trigger, "ends no allowed token", "allow its characters")
    return ActionSpace(
        vocab_size=codec.vocab_size,
        terminator_id=stop,
        allowed_ids=tuple(ids),
        min_len=min_len,
        max_len=max_len,
        trigger_ids=tuple(triggers),
    )


def fill_row(template: str, row: Row, setting: str) -> str:
    """A template, which `setting` holds, with {column} replaced by the row's text; raises BadRow for a missing or empty
    column."""
    return fill(template, lambda column: row.text(column, setting, in_template=True))


def distinct_names(sources: Sequence[str]) -> list[str]:
    """A short name of each: its file's, without its ending, or as much of its path as makes them differ."""
    paths = [PurePath(source) for source in sources]
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        for ending in (False, True):
            names = [
                "/".join((path if ending or source.startswith(HUB) else path.with_suffix("")).parts[-depth:])
                for source, path in zip(sources, paths, strict=True)
            ]
            if len(set(names)) == len(names):
                return names
    return list(sources)
