"""The languages, and the code that each data set knows them by.

A `Language` travels through the program; codes are converted here and nowhere else (arXiv 2510.13580, table 4).
"""

import re
from dataclasses import dataclass

from lightning_app.errors import UserError, did_you_mean

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
        flores_plus: FLORES+ configuration.
        belebele: Belebele configuration.
        opus_100: OPUS-100 pair with English.
    """

    name: str
    short: str
    family: str
    glotcc: str
    flores_200: str | None
    flores_plus: str | None
    belebele: str | None
    opus_100: str | None

    @property
    def script(self) -> str:
        """ISO 15924 code of the script."""
        return self.glotcc[-4:]

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


def _language(
    name: str, short: str, family: str, glotcc: str, *, flores: str = "", plus: str = "", opus: bool = True
) -> Language:
    own = glotcc.replace("-", "_")
    pair = "-".join(sorted((short, "en"))) if opus and short != "en" else None
    flores = flores or own
    return Language(name, short, family, glotcc, flores, plus or own, None if short == "cy" else flores, pair)


PAPER_LANGUAGES = ("mt", "af", "is", "cy", "mk", "lv", "lt", "sl", "sk", "et", "ka", "ne")
"""Pool of the paper, in the order of its released masks."""

_TABLE = (
    _language("Maltese", "mt", "Semitic", "mlt-Latn"),
    _language("Afrikaans", "af", "Germanic", "afr-Latn"),
    _language("Icelandic", "is", "Germanic", "isl-Latn"),
    _language("Welsh", "cy", "Celtic", "cym-Latn"),
    _language("Macedonian", "mk", "Slavic", "mkd-Cyrl"),
    _language("Latvian", "lv", "Baltic", "lvs-Latn"),
    _language("Lithuanian", "lt", "Baltic", "lit-Latn"),
    _language("Slovenian", "sl", "Slavic", "slv-Latn"),
    _language("Slovak", "sk", "Slavic", "slk-Latn"),
    _language("Estonian", "et", "Finnic", "ekk-Latn", flores="est_Latn"),
    _language("Georgian", "ka", "Kartvelian", "kat-Geor"),
    _language("Nepali", "ne", "Indo-Aryan", "npi-Deva"),
    _language("English", "en", "Germanic", "eng-Latn", opus=False),
    _language("French", "fr", "Romance", "fra-Latn"),
    _language("German", "de", "Germanic", "deu-Latn"),
    _language("Spanish", "es", "Romance", "spa-Latn"),
    _language("Italian", "it", "Romance", "ita-Latn"),
    _language("Russian", "ru", "Slavic", "rus-Cyrl"),
    _language("Chinese", "zh", "Sinitic", "cmn-Hani", flores="zho_Hans", plus="cmn_Hans"),
    _language("Japanese", "ja", "Japonic", "jpn-Jpan"),
    _language("Arabic", "ar", "Semitic", "arb-Arab"),
)


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
    >>> find_language("gla-Latn").flores_plus
    'gla_Latn'
    """
    for language in _TABLE:
        hyphenated = (language.flores_200 or "").replace("_", "-"), (language.flores_plus or "").replace("_", "-")
        if code.lower() in (language.short, language.name.lower()):
            return language
        if code.replace("_", "-") in (language.glotcc, *hyphenated):
            return language
    if match := _GLOTCC_CODE.match(code):
        glotcc, flores = "-".join(match.groups()), "_".join(match.groups())
        return Language(glotcc, glotcc, "unknown", glotcc, flores, flores, flores, None)
    known = [word for language in _TABLE for word in (language.short, language.name, language.glotcc)]
    raise UserError(
        f"unknown language '{code}'{did_you_mean(code, known) or '.'} Expected one of "
        f"{' '.join(language.short for language in _TABLE)} or a GlotCC code such as gla-Latn"
    )
