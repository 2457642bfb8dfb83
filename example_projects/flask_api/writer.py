"""Stands for a language model, and for its API: it needs no network, and tells what it used, as those do."""

from __future__ import annotations

from typing import NamedTuple

MAX_TOKENS = 500
"""What is asked for at most."""
LETTERS_PER_TOKEN = 4


class Completion(NamedTuple):
    """What was written, and how many tokens that used."""

    text: str
    tokens: int


def complete(title: str, max_tokens: int) -> Completion:
    """Writes the text of a template, with ``max_tokens`` at most."""
    text = (
        f"Dear {{name}},\n\nthis is about: {title}. It is short, because you have better things to do than to read, "
        "and friendly, because you are. Write back whenever you like.\n\nYours, Inkwell"
    )[: max_tokens * LETTERS_PER_TOKEN]
    return Completion(text, -(-len(text) // LETTERS_PER_TOKEN))
