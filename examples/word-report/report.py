"""The report: words, sentences, syllables and what follows from them.

The rules are for English, and simple on purpose:

* Line ends are made "\\n" and the typographic apostrophe becomes "'".
* A word is a run of the letters A-Z and a-z; single apostrophes between letters
  belong to it. Words are counted in lower case.
* A sentence ends at ".", "!" or "?" (one or more, then any closing quotes and
  brackets) before white space or the end of the text, and at an empty line. What
  has no word in it is no sentence.
* Syllables: see `syllables`.

Flesch reading ease: R. Flesch, "A new readability yardstick", Journal of Applied
Psychology 32 (1948) 221-233. Flesch-Kincaid grade level: J. P. Kincaid, R. P.
Fishburne, R. L. Rogers, B. S. Chissom, Research Branch Report 8-75, Naval Technical
Training Command (1975).
"""

import re
from collections import Counter

from syllables import syllables

TOP_WORDS = 20
LONGEST_SENTENCES = 5

_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_SENTENCE_END = re.compile(r"""[.!?]+["')\]]*(?=[ \t\n\r\f\v]|\Z)|\n[ \t]*\n""")


def make(text):
    """The report on one text. Ratios of a text without words are None."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2019", "'")
    pieces = (_WORD.findall(piece) for piece in _SENTENCE_END.split(text))
    sentences = [[word.lower() for word in words] for words in pieces if words]
    counts = Counter(word for words in sentences for word in words)
    total = counts.total()
    total_syllables = sum(syllables(word) * count for word, count in counts.items())
    by_rank = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    made = {
        "characters": len(text),
        "words": total,
        "distinct_words": len(counts),
        "sentences": len(sentences),
        "syllables": total_syllables,
        "type_token_ratio": None,
        "words_per_sentence": None,
        "syllables_per_word": None,
        "flesch_reading_ease": None,
        "flesch_kincaid_grade": None,
        "longest_sentences": sorted(map(len, sentences), reverse=True)[:LONGEST_SENTENCES],
        "top_words": [{"word": w, "count": n} for w, n in by_rank[:TOP_WORDS]],
    }
    if total:
        length = total / len(sentences)
        weight = total_syllables / total
        made["type_token_ratio"] = round(len(counts) / total, 4)
        made["words_per_sentence"] = round(length, 2)
        made["syllables_per_word"] = round(weight, 2)
        made["flesch_reading_ease"] = round(206.835 - 1.015 * length - 84.6 * weight, 2)
        made["flesch_kincaid_grade"] = round(0.39 * length + 11.8 * weight - 15.59, 2)
    return made
