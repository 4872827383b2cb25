"""The languages, and the code that each data set knows them by.

A `Language` travels through the program; codes are converted here and nowhere else (arXiv 2510.13580, table 4).
``languages.tsv`` beside this file holds every language of FLORES-200, the paper's twelve first.
"""

import csv
import difflib
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from lightning_app.errors import UserError, did_you_mean

_MULTIBLIMP = {"als": "sqi", "lvs": "lav", "pes": "fas", "uzn": "uzb"}
_RIGHT_TO_LEFT = frozenset(["Adlm", "Arab", "Hebr", "Mand", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa"])
_GLOTCC_CODE = re.compile(r"^([a-z]{3})[-_]([A-Z][a-z]{3})$")


@dataclass(frozen=True)
class Language:
    """A language in one script. Codes are None where the data set lacks it.

    Attributes:
        name: English name, for people.
        short: Code that the configuration files and the released masks use.
        family: Genus or family, for grouping overlaps.
        glotcc: GlotCC-V1 configuration, ``cym-Latn``.
        flores_200: FLORES-200 and SIB-200 code, ``cym_Latn``.
        flores_plus: FLORES+ configuration, ``twi_Latn_asan1239`` where it renamed the code of FLORES-200.
        belebele: Belebele configuration.
        opus_100: OPUS-100 pair with English.
        joshi: Class from 0, left behind, to 5, rich in resources, of Joshi et al. 2020 (arXiv 2004.09095,
            ``lang2tax.txt``); it is the language's, whatever the script.
        cc100_gib: Size in GiB of CC-100 (arXiv 1911.02116, table 6; for Swedish as its authors corrected it).
    """

    name: str
    short: str
    family: str
    glotcc: str
    flores_200: str | None
    flores_plus: str | None
    belebele: str | None
    opus_100: str | None
    joshi: int | None = None
    cc100_gib: float | None = None

    @property
    def script(self) -> str:
        """ISO 15924 code of the script."""
        return self.glotcc[-4:]

    @property
    def tag(self) -> str:
        """BCP 47 tag, as in HTML's ``lang``: ``cy-Latn``."""
        return f"{self.short.split('-')[0]}-{self.script}"

    @property
    def is_right_to_left(self) -> bool:
        """Whether its script is written from right to left."""
        return self.script in _RIGHT_TO_LEFT

    @property
    def multiblimp(self) -> str:
        """Code that MultiBLiMP would use: that of ISO 639-3, of the macrolanguage where it goes by that."""
        iso = (self.flores_200 or self.glotcc)[:3]
        return _MULTIBLIMP.get(iso, iso)

    @property
    def global_piqa(self) -> str:
        """Code that Global PIQA would use, ``cym_latn``."""
        return (self.flores_plus or self.glotcc.replace("-", "_")).lower()

    def __str__(self) -> str:
        return self.name if self.name == self.short else f"{self.name} ({self.short})"

    def code(self, data_set: str) -> str:
        """Returns the code that ``data_set`` (a field name of this class) uses.

        Raises:
            UserError: The data set lacks the language.
        """
        code = getattr(self, data_set)
        if code is None:
            raise UserError(f"{data_set.replace('_', ' ')} has no {self}; take it off the list or use other data")
        return code


PAPER_LANGUAGES = ("mt", "af", "is", "cy", "mk", "lv", "lt", "sl", "sk", "et", "ka", "ne")
"""Pool of the paper, in the order of its released masks."""


def _read_table() -> tuple[Language, ...]:
    with Path(__file__).with_suffix(".tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return tuple(
        Language(
            name=row["name"],
            short=row["short"],
            family=row["family"],
            glotcc=row["glotcc"],
            flores_200=row["flores_200"] or None,
            flores_plus=row["flores_plus"] or None,
            belebele=row["belebele"] or None,
            opus_100=row["opus_100"] or None,
            joshi=int(row["joshi"]) if row["joshi"] else None,
            cc100_gib=float(row["cc100_gib"]) if row["cc100_gib"] else None,
        )
        for row in rows
    )


def _key(word: str) -> str:
    """Returns the form in which names and codes are compared: no case, accents, underscores or curly apostrophes."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))
    return plain.casefold().replace("_", "-").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").strip()


_TABLE = _read_table()

# FLORES-200's names of the languages that go by a shorter one here, and everyday names unlike the table's.
_OTHER_NAMES = {
    "ar": ("Modern Standard Arabic",),
    "fa": ("Farsi",),
    "lv": ("Standard Latvian",),
    "pa": ("Punjabi",),
    "tl": ("Filipino",),
    "yue": ("Cantonese",),
    "zh": ("Chinese (Simplified)", "Mandarin"),
}

_WORDS = {
    _key(word): (word, language)
    for language in _TABLE
    for word in (
        language.name,
        *_OTHER_NAMES.get(language.short, ()),
        language.short,
        language.glotcc,
        language.flores_200,
        language.flores_plus,
    )
    if word
}


def known_languages() -> tuple[Language, ...]:
    """Returns the languages of the table, the paper's twelve first."""
    return _TABLE


def find_language(code: str) -> Language:
    """Returns the language for a short code, a name, or a code of GlotCC or FLORES.

    Any code of GlotCC's form is accepted, whether the table knows it or not; FLORES is then assumed to use the same.

    Raises:
        UserError: ``code`` is none of these.

    >>> find_language("cy").flores_plus, find_language("Estonian").glotcc, find_language("ekk_Latn").flores_200
    ('cym_Latn', 'ekk-Latn', 'est_Latn')
    >>> find_language("vietnamese").short, find_language("vie-Latn").joshi, find_language("id").cc100_gib
    ('vi', 4, 148.3)
    >>> find_language("uzn-Cyrl").flores_plus
    'uzn_Cyrl'
    """
    if found := _WORDS.get(_key(code)):
        return found[1]
    if match := _GLOTCC_CODE.match(code):
        glotcc, flores = "-".join(match.groups()), "_".join(match.groups())
        return Language(glotcc, glotcc, "unknown", glotcc, flores, flores, flores, None)
    raise UserError(
        f"unknown language '{code}'{_suggest(code)} Expected one of {' '.join(PAPER_LANGUAGES)}, the name or code of "
        "another language of FLORES-200, or a GlotCC code such as gla-Latn"
    )


def expand_languages(text: str) -> tuple[list[Language], set[Language]]:
    """Returns the languages that ``text`` names, each once, and those of them that only a group names.

    Languages are separated by commas and named as in `find_language`. A group is ``all`` of FLORES-200, the
    ``family:Celtic`` or the ``script:Geor`` of the table, or a file with such words, one a line.

    Raises:
        UserError: A word is neither, or a group has no language.

    >>> [language.short for language in expand_languages("mt, family:Celtic")[0]]
    ['mt', 'cy', 'gd', 'ga']
    """
    found: dict[Language, None] = {}
    named: set[Language] = set()
    for word in (part.strip() for part in text.split(",")):
        if not word:
            raise UserError(f"--languages is '{text}', which names no language between two commas; take one comma out")
        if (group := _group(word)) is not None:
            found |= dict.fromkeys(group)
        elif _key(word) not in _WORDS and Path(word).is_file():
            of_file, of_groups = expand_languages(_words_of_file(Path(word)))
            found |= dict.fromkeys(of_file)
            named |= set(of_file) - of_groups
        else:
            language = find_language(word)
            found[language] = None
            named.add(language)
    return list(found), set(found) - named


def _group(word: str) -> list[Language] | None:
    """Returns the languages of a group, or None where ``word`` is none."""
    kind, colon, name = word.partition(":")
    if word == "all":
        return list(_TABLE)
    if not colon or kind not in ("family", "script"):
        return None
    found = [language for language in _TABLE if _key(getattr(language, kind)) == _key(name)]
    if not found:
        known = sorted({getattr(language, kind) for language in _TABLE})
        raise UserError(f"no language has {kind} '{name}'{did_you_mean(name, known)}; the table has {', '.join(known)}")
    return found


def _words_of_file(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read the languages in {path}: {' '.join(str(error).split())}") from error
    words = [line.partition("#")[0].strip() for line in lines]
    if not any(words):
        raise UserError(f"{path} names no language; expected one a line")
    return ",".join(word for word in words if word)


def _suggest(code: str) -> str:
    """Returns the names that have ``code`` as a word, else the nearest name or code, as a question."""
    near = [language.name for language in _TABLE if _key(code) in _key(language.name).split()]
    near = near or [_WORDS[word][0] for word in difflib.get_close_matches(_key(code), _WORDS, n=1)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else "."


def find_languages(text: str) -> list[tuple[Language, float]]:
    """Returns the languages that ``text`` names, each with its share of the whole; the shares sum to one.

    Languages are separated by commas and named as in `find_language`. Each may have a share after a colon, in any
    unit; one without a share counts as 1.

    Raises:
        UserError: A part is empty, names an unknown language or one that was named before, or its share is not a
            number above zero.

    >>> [(language.name, share) for language, share in find_languages("cy")]
    [('Welsh', 1.0)]
    >>> [(language.name, share) for language, share in find_languages("cy:3, mt:1")]
    [('Welsh', 0.75), ('Maltese', 0.25)]
    """
    expected = "expected languages with or without shares, e.g. --language cy:2,mt:1"
    shares: dict[Language, float] = {}
    for part in text.split(","):
        code, colon, share = (word.strip() for word in part.partition(":"))
        if not code:
            raise UserError(f"--language is '{text}', which names no language in '{part.strip()}'; {expected}")
        language = find_language(code)
        if language in shares:
            raise UserError(f"--language is '{text}', which names {language} twice; {expected}")
        try:
            shares[language] = float(share) if colon else 1.0
        except ValueError:
            shares[language] = math.nan
        if not 0 < shares[language] < math.inf:
            found = f"where the share of {language} is '{share}', not a number above zero"
            raise UserError(f"--language is '{text}', {found}; {expected}")
    total = sum(shares.values())
    if total == math.inf:
        raise UserError(f"--language is '{text}', where the shares are too large to add up; {expected}")
    return [(language, share / total) for language, share in shares.items()]
