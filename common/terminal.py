"""Text that models, users and their functions wrote, on a terminal, which would take some of it for orders."""

from __future__ import annotations

from rich.text import Text


def visible(text: str) -> str:
    """A text on one line, with what would move the cursor, end the line or turn its direction written out.

    What a model wrote may hold anything.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def visible_lines(text: str) -> str:
    """The same for a text that may have lines."""
    return "\n".join(visible(line) for line in text.split("\n"))


def cells(*values: object) -> list[Text]:
    """A row of a `rich` table, which takes plain strings for markup: `[/INST]` in one would be an error."""
    return [Text(visible(str(value))) for value in values]


def title(text: str) -> Text:
    """A table's title, for the same reason."""
    return Text(visible(text), "table.title")
