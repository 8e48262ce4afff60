"""Equal writings of a character, brought to the one that a vocabulary has; characters that it has never change.

Follows the Unicode Standard: Annex 15 (NFC, NFD, compatibility forms) and SpecialCasing.txt (dotted and dotless i).
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from itertools import combinations

EQUALS = (
    "'’ʼ‘ʻ‛`´′＇׳ꞌʹ",
    "-‐‑⁃−﹣－–—־",
    "–—―‒⸺⸻﹘-",
    '"”“„‟″«»‹›＂「」『』',
    "·‧∙•・",
    ",،，、",
    ".。｡।۔",
    "?؟",
    ";؛",
    "șş",
    "țţ",
    "ȘŞ",
    "ȚŢ",
    "يیى",
    "كکڪ",
    "هہھ",
    "اٱ",
    "əǝ",
    "ӏӀ",
    "σς",
    "gɡ",
)
"""Characters that stand for each other. One that is unknown becomes the first known one of the first line with it."""
EXPANSIONS = {"…": "...", "œ": "oe", "æ": "ae"}
"""Characters written as several; œ and æ only in :data:`LIGATURE_LANGUAGES`, because others have them as letters."""
LIGATURE_LANGUAGES = frozenset({"en", "eng", "fr", "fra", "la", "lat"})
_DOTLESS = "az azb aze azj ba bak crh gag kaz kk tat tr tt tur"
DOTLESS_LANGUAGES = frozenset(_DOTLESS.split())
"""Languages whose I is ı and whose İ is i, if the vocabulary has ı."""
SPOKEN_PUNCTUATION = frozenset("%&@#§‰‱٪")
"""Read as words, although Unicode calls them punctuation."""
_COMPATIBLE = (
    "<compat> <wide> <narrow> <font> <small> <isolated> <initial> <medial> <final> <noBreak> <vertical> <square>"
)
_READ_AS_WRITTEN = frozenset(_COMPATIBLE.split())
"""Compatibility forms that are read like what they consist of, unlike ², ½, ① and ª."""
_SILENT_OTHERS = frozenset("`´")
"""Accents in place of apostrophes."""
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[^\w\s]+(?=[^\W_])")
_WITHIN_WORDS = re.compile(r"[-‐‑'’ʼ`´\"()\[\]{}]*\.?[-‐‑'’ʼ`´\"()\[\]{}]*")
"""Such as in well-known, I'd, U.S. and (s)he."""
_MAX_CACHED = 65536


def is_invisible(character: str) -> bool:
    """Returns whether a character has neither width nor sound: joiners, bidi marks, BOM, soft hyphen, controls."""
    if "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef" or character in "\u034f\u0640":
        return True  # variation selectors, grapheme joiner and tatweel, which are marks or letters
    return unicodedata.category(character) in ("Cc", "Cf") and not character.isspace()


def is_spoken(character: str) -> bool:
    """Returns whether a text loses sound without the character: a letter, mark, digit or symbol.

    White space, invisible characters, and punctuation except for :data:`SPOKEN_PUNCTUATION` are silent.
    """
    if character in SPOKEN_PUNCTUATION:
        return True
    is_silent = is_invisible(character) or character.isspace() or character in _SILENT_OTHERS
    return not is_silent and unicodedata.category(character)[0] not in "PZ"


def ordinary(text: str, language: str | None = None) -> str:
    """Returns ``text`` with usual characters and spaces, in NFC: for new vocabularies, espeak-ng and uroman."""
    folded = _ordinary_characters(language).fold(text)
    return unicodedata.normalize("NFC", re.sub(r"\s", " ", folded))


@lru_cache(maxsize=16)
def _ordinary_characters(language: str | None) -> "Normalizer":
    return Normalizer("\u200c\u200dı", language)  # joiners change letters of Indic scripts


class Normalizer:
    """Writes texts in the characters of one vocabulary. Caches its results per character."""

    def __init__(self, known: Collection[str], language: str | None = None, lowers: bool = True) -> None:
        """Stores the vocabulary.

        Args:
            known: symbols of the vocabulary; texts consist of those with a single character.
            language: as named by voices, for letters that differ between languages (None = unknown).
            lowers: whether the voice lowercases texts.
        """
        self.known = frozenset(symbol for symbol in known if len(symbol) == 1)
        base = (language or "").lower().partition("-")[0]
        self._is_dotless = lowers and base in DOTLESS_LANGUAGES and "ı" in self.known
        self._has_ligatures = base in LIGATURE_LANGUAGES
        self._lowers = lowers
        digits = sorted((one for one in self.known if one.isdecimal()), reverse=True)
        self._digits = {int(digit): digit for digit in digits}
        self.has_all_digits = any(
            all(chr(ord(digit) + value) in self.known for value in range(10)) for digit in digits if int(digit) == 0
        )
        self._plain = self.known if self.has_all_digits else self.known - set(digits)
        self._folded = _Table(self._fold)
        self._lowered = _Table(self._lower)
        self._kept = _Table(self._keep)
        self._clusters: dict[str, tuple[str, tuple[str, ...]]] = {}

    def is_plain(self, text: str) -> bool:
        """Returns whether ``text`` is in the vocabulary as it is, and has no digits that are written out."""
        return self._plain.issuperset(text)

    def fold(self, text: str) -> str:
        """Returns ``text`` in the usual characters, for rules that look for them. Call it before lowercasing.

        Only unknown characters change: invisible ones are dropped; ligatures, full-width and presentation forms become
        the characters that they stand for, and letters with marks one character; I and İ become ı and i in
        :data:`DOTLESS_LANGUAGES`, and İ always i.
        """
        if self.known.issuperset(text):
            return text
        if not unicodedata.is_normalized("NFC", text):
            text = "".join(map(self._composed, _clusters(text)))
        if "i\u0307" in text and "\u0307" not in self.known:
            text = text.replace("i\u0307", "i")  # what lower() makes of İ
        return text.translate(self._folded)

    def lower(self, text: str) -> str:
        """Returns ``text`` in lower case, except for characters of the vocabulary."""
        return text.translate(self._lowered)

    def resolve(self, text: str) -> tuple[str, tuple[str, ...]]:
        """Returns folded, lowercased ``text`` in characters of the vocabulary, and those that it has no equal for.

        Of an unknown letter with marks, the text keeps the known parts; the missing character is the whole letter.
        Unknown punctuation or symbols between two letters become a space, so that the words remain separate.
        """
        if self.known.issuperset(text):
            return text, ()
        if any(map(_extends, set(text))):
            clusters = [self._resolve(cluster) for cluster in _clusters(text)]
            kept = "".join(part for part, _ in clusters)
        else:  # the same, in a third of the time
            kept = text.translate(self._kept)
            clusters = [self._resolve(character) for character in text if character not in self.known]
        missing = tuple(character for _, unknown in clusters for character in unknown)
        return _BETWEEN_WORDS.sub(self._separate, kept), missing

    def _separate(self, match: re.Match[str]) -> str:
        between = "".join(one for one in match[0] if unicodedata.category(one)[0] != "M")
        separates = self._lowers and " " in self.known and not _WITHIN_WORDS.fullmatch(between)
        return " " if separates and self.known.isdisjoint(match[0]) else match[0]

    def _composed(self, cluster: str) -> str:
        is_known = self.known.issuperset(cluster.lower() if self._lowers else cluster)
        return cluster if is_known else unicodedata.normalize("NFC", cluster)

    def _fold(self, character: str) -> str:
        if character in self.known:
            return character
        if self._is_dotless and character == "I":
            return "ı"
        if self._lowers and character == "İ":
            return "i"  # lower() adds a combining dot
        if is_invisible(character):
            return ""
        kept = character.isspace() or character in _FIRST_LINE
        if kept or (self._lowers and self.known.issuperset(character.lower())):
            return character
        return "%" if character == "٪" else _read_as_written(character)

    def _lower(self, character: str) -> str:
        return character if character in self.known else character.lower()

    def _keep(self, character: str) -> str:
        return self._resolve(character)[0]

    def _resolve(self, cluster: str) -> tuple[str, tuple[str, ...]]:
        if cluster not in self._clusters:
            if len(self._clusters) == _MAX_CACHED:
                self._clusters.clear()
            self._clusters[cluster] = self._best_form(cluster)
        return self._clusters[cluster]

    def _best_form(self, cluster: str) -> tuple[str, tuple[str, ...]]:
        if self.known.issuperset(cluster):
            return cluster, ()
        forms = ["".join(map(self._equal, form)) for form in _canonical_forms(cluster)]
        composed, *_ = forms
        best = min(forms, key=lambda form: (self.known.isdisjoint(form), len(set(form) - self.known)))
        unknown = tuple(one for one in best if one not in self.known and not one.isspace())
        return best, (composed,) if unknown and len(composed) == 1 else unknown

    def _equal(self, character: str) -> str:
        """Returns known characters that stand for ``character``, or else itself."""
        if character in self.known:
            return character
        if character.isspace():
            return " "
        if character.isdecimal():
            return self._digits.get(int(character), character)
        for other in _FIRST_LINE.get(character, ""):
            if other in self.known:
                return other
        expansion = EXPANSIONS.get(character, "") if self._has_ligatures or character == "…" else ""
        return expansion if expansion and self.known.issuperset(expansion) else character


class _Table(dict[int, str]):
    """Table for ``str.translate`` that computes and keeps its entries on demand."""

    def __init__(self, compute: Callable[[str], str]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, code: int) -> str:
        self[code] = result = self._compute(chr(code))
        return result

    def __reduce__(self) -> tuple[type["_Table"], tuple[Callable[[str], str]]]:
        return _Table, (self._compute,)


_FIRST_LINE = {character: line for line in reversed(EQUALS) for character in line}


def _read_as_written(character: str) -> str:
    """Returns the characters that a compatibility form stands for; others, and numbers such as ½, as they are."""
    if character == "№":
        return character  # read as a word, not as no
    kind = unicodedata.decomposition(character).partition(" ")[0]
    category = unicodedata.category(character)
    plain = unicodedata.normalize("NFKC", character)
    is_same = kind in _READ_AS_WRITTEN and category != "No" and not plain.startswith(" ")
    has_new_digits = category != "Nd" and any(map(str.isdecimal, plain))  # such as ㎡
    return plain if is_same and not has_new_digits else character


@lru_cache(maxsize=_MAX_CACHED)
def _extends(character: str) -> bool:
    """Returns whether a character belongs to the one before: a mark, or a Korean vowel or final consonant."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


def _clusters(text: str) -> Iterator[str]:
    """Yields each character of ``text`` with the marks after it."""
    start = 0
    for index in range(1, len(text)):
        if not _extends(text[index]):
            yield text[start:index]
            start = index
    if text:
        yield text[start:]


def _canonical_forms(cluster: str) -> list[str]:
    """Returns canonically equivalent forms of a letter with marks: NFC first, then NFD and those in between."""
    decomposed = unicodedata.normalize("NFD", cluster)
    forms = [unicodedata.normalize("NFC", cluster), decomposed]
    marks = range(1, min(len(decomposed), 5))
    for count in range(1, len(marks)):
        for chosen in combinations(marks, count):
            joined = unicodedata.normalize("NFC", decomposed[0] + "".join(decomposed[index] for index in chosen))
            forms.append(joined + "".join(decomposed[index] for index in marks if index not in chosen) + decomposed[5:])
    return [form for form in forms if unicodedata.normalize("NFD", form) == decomposed]
