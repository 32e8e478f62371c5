"""Rationales that name what the row asks for, and that are not long."""


def score(prompts: list[str], texts: list[str], rows: list[dict]) -> list[float]:
    """Nats for each text: +4 where the row's keyword is named, -0.2 a word."""
    values = []
    for text, row in zip(texts, rows, strict=True):
        named = "keyword" in row and row["keyword"] in text
        values.append(4.0 * named - 0.2 * len(text.split()))
    return values
