"""Conversations as a chat model reads them: rendered once by the template that comes with its tokenizer.

The template alone writes special tokens. What a row or a user says is text: where it spells one of them, as
`<|im_end|>`, it could end its own turn and speak in another's name, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeGuard

from common.errors import UserError
from common.json_text import UnusableValue
from common.row import BadRow, as_text

Message = Mapping[str, str]
"""A `role` and its `content`."""
_MARK = "amortis7"
"""Said by the assistant to see what a template puts behind it."""


def user(text: str) -> Message:
    """What the user says."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """What the model says."""
    return {"role": "assistant", "content": text}


def is_conversation(value: Any) -> TypeGuard[list[Any]]:
    """Whether a column's value is a list of messages and no text."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def split_turn(value: Sequence[Any]) -> tuple[list[Message], str | None]:
    """The messages before the assistant's last turn, and that turn; None where the last message is another's.

    Raises BadRow for what are no messages of text.
    """
    messages = [_message(item, number) for number, item in enumerate(value, start=1)]
    if messages[-1]["role"] != "assistant":
        return messages, None
    if len(messages) == 1:
        raise BadRow("one message of the assistant, and nothing that it answers")
    return messages[:-1], messages[-1]["content"]


def only_turn(value: Sequence[Any]) -> str:
    """What the assistant says in a conversation that is its turn alone; raises BadRow."""
    messages = [_message(item, number) for number, item in enumerate(value, start=1)]
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow("a completion is one message of the assistant")
    return messages[0]["content"]


def _message(item: Any, number: int) -> Message:
    if isinstance(item, UnusableValue) or not isinstance(item, Mapping):
        raise BadRow(f"message {number} is no object with role and content")
    # A table's messages all have all keys.
    others = sorted(key for key, value in item.items() if key not in ("role", "content") and value is not None)
    if others:
        raise BadRow(f"message {number} has {others[0]!r}: only role and content are read")
    role = item.get("role")
    if not isinstance(role, str) or not role.isidentifier():
        # It stands in the template's own part, so that it must be a word.
        raise BadRow(f"message {number} has no role such as user or assistant")
    try:
        content = as_text(item.get("content"))
    except BadRow as error:
        raise BadRow(f"the content of message {number} {error}") from error
    if not content.strip():
        raise BadRow(f"the content of message {number} is empty")
    return {"role": role, "content": content}


class Chat:
    """A tokenizer's chat template, with the system message and the variables that a task sets."""

    def __init__(
        self, tokenizer: Any, system: str | None, variables: Mapping[str, Any], add_bos_token: bool | None = None
    ) -> None:
        """BOS stands where the template writes it; `add_bos_token` puts it before the text or leaves it out.

        Raises UserError naming `task.chat` if there is no template, or if it takes no system message.
        """
        self._tokenizer, self._variables, self._add_bos = tokenizer, dict(variables), add_bos_token
        if add_bos_token is False:
            self._variables["bos_token"] = ""
        self._system: list[Message] = []
        if not (getattr(tokenizer, "chat_template", None) or "chat_template" in variables):
            raise UserError(
                "task.chat",
                True if system is None else system,
                "the model's tokenizer has no chat template",
                "give an instruct model, or task.chat_template_kwargs: {chat_template: …}, or leave task.chat out",
            )
        if system is not None:
            self._take_system(system)

    @property
    def system(self) -> str | None:
        """What opens a conversation that has no system message of its own."""
        return self._system[0]["content"] if self._system else None

    @property
    def variables(self) -> dict[str, Any]:
        """What the template is given besides the messages."""
        return dict(self._variables)

    @property
    def own_template(self) -> str | None:
        """The template that the task has in place of the tokenizer's; None where it is that."""
        given = self._variables.get("chat_template")
        return None if given is None else str(self._tokenizer.get_chat_template(given))

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant's turn begins; raises BadRow.

        The system message opens it, unless it has one of its own.
        """
        for message in messages:
            self._check(message["content"])
        own = [] if messages[0]["role"] == "system" else self._system
        text = self._render([*own, *messages], add_generation_prompt=True)
        ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        bos = self._tokenizer.bos_token_id
        return [bos, *ids] if self._add_bos and ids[0] != bos else ids

    @cached_property
    def end_of_turn(self) -> int:
        """The token that the template puts behind what the assistant said; raises UserError naming `task.chat`."""
        try:
            text = self._render([*self._system, user("Hello."), assistant(_MARK)], add_generation_prompt=False)
        except BadRow as error:
            raise UserError("task.chat", True, f"{error}", "set task.terminator") from error
        _, found, behind = text.rpartition(_MARK)
        ids = list(self._tokenizer(behind, add_special_tokens=False)["input_ids"]) if found and behind else []
        end = next((token for token in ids if token in self._special), None)
        if end is None or self._tokenizer.decode(ids[: ids.index(end)]).strip():
            raise UserError(
                "task.chat",
                True,
                f"the chat template ends the assistant's turn with {behind!r}, which is no token of its own",
                "set task.terminator to the text that is to end it",
            )
        return int(end)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self._variables,
                )
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise BadRow(f"the chat template refuses it ({error})") from error

    def _take_system(self, text: str) -> None:
        remedy = "set task.chat: true, and say it in task.prompt"
        if not text.strip():
            raise UserError("task.chat", text, "is an empty system message", "give true, or some text")
        message = {"role": "system", "content": text}
        try:
            self._check(text)
            rendered = self._render([message, user("Hello.")], add_generation_prompt=True)
        except BadRow as error:
            raise UserError("task.chat", text, f"as a system message: {error}", remedy) from error
        if text.strip() not in rendered:
            raise UserError("task.chat", text, "the chat template leaves system messages out", remedy)
        self._system = [message]

    def _check(self, text: str) -> None:
        """Raises BadRow if a text spells a special token, or becomes one."""
        spelled = next((token for token in self._special.values() if token in text), None)
        if spelled is None:
            unknown = self._tokenizer.unk_token_id
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            spelled = next((self._special[i] for i in ids if i in self._special and i != unknown), None)
        if spelled is not None:
            raise BadRow(f"its text holds {spelled!r}, which the chat template alone may write")

    @cached_property
    def _special(self) -> dict[int, str]:
        """Texts of the special tokens, by id."""
        added = {token: str(what) for token, what in self._tokenizer.added_tokens_decoder.items() if what.special}
        named = zip(self._tokenizer.all_special_ids, self._tokenizer.all_special_tokens, strict=True)
        return {**added, **dict(named)}
