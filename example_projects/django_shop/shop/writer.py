"""Stands for a language model, and for its API: it needs no network, and tells what it used, as those do."""

from __future__ import annotations

from typing import NamedTuple

MAX_TOKENS = 500
"""What is asked for at most."""
LETTERS_PER_TOKEN = 4

WORDS = {
    "poster": "{name}. Come early, bring a friend, and stay for the music. Doors open at seven. Entry is free.",
    "report": "{name}. This has been a year of small steps in one direction. We thank all who walked it with us.",
    "menu": "{name}. Bread from next door, soup of the day, and what the market had this morning. Ask us for more.",
    "cover": "{name}. A first page that says what follows, and nothing else. Turn it to begin.",
}


class Completion(NamedTuple):
    """What was written, and how many tokens that used."""

    text: str
    tokens: int


def complete(kind: str, name: str, max_tokens: int) -> Completion:
    """Writes the words of a template, with ``max_tokens`` at most."""
    text = WORDS[kind].format(name=name)[: max_tokens * LETTERS_PER_TOKEN]
    return Completion(text, -(-len(text) // LETTERS_PER_TOKEN))
