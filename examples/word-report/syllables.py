"""Syllables of an English word, by a simple rule."""

import re
from functools import lru_cache

_VOWELS = "aeiouy"
_VOWEL_RUN = re.compile(f"[{_VOWELS}]+")
_SILENT = re.compile(
    rf"""
    [^{_VOWELS}]                 # a consonant before the ending
    (?<! [^{_VOWELS}]l )         # but not as in "table", "tables", "handled"
    (?: e
      | (?<! [cghsxz] ) es       # but not as in "places", "churches", "boxes"
      | (?<! [dt] ) ed           # but not as in "added", "started"
    ) $
    """,
    re.VERBOSE,
)


@lru_cache(maxsize=None)
def syllables(word):
    """Runs of the vowels a, e, i, o, u and y; one less for a silent ending; at least 1.

    Silent are "e", "es" and "ed" behind a consonant, with three exceptions: behind a
    consonant and "l"; "es" behind c, g, h, s, x or z; "ed" behind d or t. Apostrophes
    do not count: "don't" is read as "dont".
    """
    word = word.replace("'", "")
    runs = len(_VOWEL_RUN.findall(word))
    return max(1, runs - (_SILENT.search(word) is not None))
