"""Which keywords of two languages say the same, found by the emoji that have them.

CLDR's keywords are no translations of each other, but those of one emoji in two languages are about the same thing. So
"fruit" and "фрукты" are on nearly the same emoji, and on no others: what a keyword goes together with, over all emoji,
is its translation (Dice's coefficient, 1945; its use for dictionaries: Smadja, McKeown and Hatzivassiloglou 1996).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

LEAST = 2  # emoji that both keywords are on
AGREEMENT = 0.5  # of two times the emoji in common to the sum of both keywords' emoji

Captions = Mapping[str, Sequence[str]]  # language -> name, keywords


def aligned_keywords(concepts: Iterable[Captions]) -> list[tuple[str, str, str]]:
    """Returns keywords with their English: (English, in the language, language).

    A keyword gets the English one that it agrees with most, so that synonyms all lead to one; where two are as good as
    each other, nobody knows which, and it gets none. English itself is not in it.
    """
    concepts = list(concepts)
    languages = dict.fromkeys(language for captions in concepts for language in captions if language != "en")
    return [(english, text, language) for language in languages for english, text in _pairs(concepts, language)]


def _pairs(concepts: Sequence[Captions], language: str) -> Iterator[tuple[str, str]]:
    of_english: Counter[str] = Counter()
    of_text: Counter[str] = Counter()
    together: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for captions in concepts:
        english, texts = captions.get("en", ())[1:], captions.get(language, ())[1:]
        of_english.update(english)
        of_text.update(texts)
        for text in texts:
            together[text].update(english)
    for text, found in together.items():
        agreement = {
            word: 2 * count / (of_english[word] + of_text[text]) for word, count in found.items() if count >= LEAST
        }
        best = max(agreement.values(), default=0.0)
        words = [word for word, value in agreement.items() if value == best]
        if best >= AGREEMENT and len(words) == 1:
            yield words[0], text
