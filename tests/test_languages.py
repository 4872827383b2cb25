import dataclasses
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import lightning_app.languages as module
from lightning_app.errors import UserError
from lightning_app.languages import PAPER_LANGUAGES, Language, find_language, known_languages
from tests.faults import fault, note, refusal

ALL = known_languages()
TABLE = Path(module.__file__).with_suffix(".tsv")


def each(field):
    return [getattr(language, field) for language in ALL]


def filled(field):
    return [value for value in each(field) if value is not None]


def test_every_language_of_flores_200_is_there_once():
    codes = each("flores_200")
    assert len(codes) == len(set(codes)) == 204
    assert all(re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", code) for code in codes)
    spots = (
        "ace_Arab ajp_Arab arb_Latn ckb_Arab khk_Cyrl kas_Deva mni_Beng sat_Olck taq_Tfng tzm_Tfng yue_Hant zul_Latn"
    )
    assert [code for code in spots.split() if code not in codes] == []
    # Eight languages have two scripts: Acehnese, Arabic, Banjar, Chinese, Kanuri, Kashmiri, Minangkabau and Tamasheq.
    assert len({code[:3] for code in codes}) == 204 - 8
    scripts = Counter(code[4:] for code in codes)
    assert [scripts[script] for script in ("Ethi", "Tibt", "Tfng", "Hebr", "Hant", "Hans", "Olck")] == [
        2,
        2,
        2,
        2,
        2,
        1,
        1,
    ]


def test_the_papers_twelve_come_first_then_the_other_nine_then_the_rest_in_the_order_of_flores_200():
    assert each("short")[:12] == list(PAPER_LANGUAGES)
    assert " ".join(each("short")[12:21]) == "en fr de es it ru zh ja ar"
    rest = each("flores_200")[21:]
    assert rest == sorted(rest)


@pytest.mark.parametrize("field", ["name", "short", "glotcc", "flores_200", "flores_plus"])
def test_nothing_names_two_languages(field):
    values = [value.lower() for value in each(field)]
    assert [value for value, times in Counter(values).items() if times > 1] == []


@pytest.mark.parametrize("language", ALL, ids=each("short"))
def test_a_language_is_found_by_each_of_its_names(language):
    names = [language.short, language.name, language.glotcc, language.flores_200, language.flores_plus]
    for name in names:
        spellings = [name, name.upper(), name.lower(), f" {name} ", name.replace("_", "-"), name.replace("-", "_")]
        assert all(find_language(spelling) is language for spelling in spellings), name


@pytest.mark.parametrize("language", ALL, ids=each("short"))
def test_a_row_holds_what_its_columns_promise(language):
    assert re.fullmatch(r"[a-z]{2,3}(-[A-Z][a-z]{3})?", language.short)
    assert re.fullmatch(r"[a-z]{3}-[A-Z][a-z]{3}", language.glotcc)
    assert re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}(_[a-z]{4}\d{4})?", language.flores_plus)
    assert language.belebele in (None, language.flores_200)
    assert language.family
    assert language.family != "unknown"
    assert language.joshi is None or language.joshi in range(6)
    assert language.cc100_gib is None or 0 < language.cc100_gib <= 300.8
    if language.opus_100:
        assert sorted(language.opus_100.split("-")) == language.opus_100.split("-")
        assert set(language.opus_100.split("-")) == {"en", language.short}
    # Scripts agree but for Chinese characters, which GlotCC does not tell apart.
    assert language.script == language.flores_200[4:] or (
        language.script == "Hani" and language.flores_200[4:6] == "Ha"
    )
    # A plain short code, or one with the script of the language's second row.
    assert language.short.partition("-")[2] in ("", language.flores_200[4:])


def test_another_script_shares_the_language_but_not_its_code():
    for language in ALL:
        if "-" in language.short:
            plain = find_language(language.short.partition("-")[0])
            assert plain.flores_200[:3] == language.flores_200[:3]
            assert (plain.family, plain.joshi) == (language.family, language.joshi)
    second = sorted(language.short for language in ALL if "-" in language.short)
    assert " ".join(second) == "ace-Arab ar-Latn bjn-Arab kr-Arab ks-Deva min-Arab taq-Tfng zh-Hant"


def test_the_first_twenty_one_rows_are_what_they_always_were():
    assert " ".join(each("name")[:21]) == (
        "Maltese Afrikaans Icelandic Welsh Macedonian Latvian Lithuanian Slovenian Slovak Estonian Georgian Nepali "
        "English French German Spanish Italian Russian Chinese Japanese Arabic"
    )
    assert " ".join(each("family")[:21]) == (
        "Semitic Germanic Germanic Celtic Slavic Baltic Baltic Slavic Slavic Finnic Kartvelian Indo-Aryan "
        "Germanic Romance Germanic Romance Romance Slavic Sinitic Japonic Semitic"
    )
    assert " ".join(each("glotcc")[:21]) == (
        "mlt-Latn afr-Latn isl-Latn cym-Latn mkd-Cyrl lvs-Latn lit-Latn slv-Latn slk-Latn ekk-Latn kat-Geor npi-Deva "
        "eng-Latn fra-Latn deu-Latn spa-Latn ita-Latn rus-Cyrl cmn-Hani jpn-Jpan arb-Arab"
    )
    renamed = {"et": ("est_Latn", "ekk_Latn"), "zh": ("zho_Hans", "cmn_Hans")}
    for language in ALL[:21]:
        own = language.glotcc.replace("-", "_")
        assert (language.flores_200, language.flores_plus) == renamed.get(language.short, (own, own))
        assert language.belebele == (None if language.short == "cy" else language.flores_200)
    assert " ".join(str(pair) for pair in each("opus_100")[:21]) == (
        "en-mt af-en en-is cy-en en-mk en-lv en-lt en-sl en-sk en-et en-ka en-ne "
        "None en-fr de-en en-es en-it en-ru en-zh en-ja ar-en"
    )


@pytest.mark.parametrize(
    ("text", "glotcc", "plus", "opus"),
    [
        ("vi", "vie-Latn", "vie_Latn", "en-vi"),
        ("Vietnamese", "vie-Latn", "vie_Latn", "en-vi"),
        ("vie_Latn", "vie-Latn", "vie_Latn", "en-vi"),
        ("id", "ind-Latn", "ind_Latn", "en-id"),
        ("fa", "fas-Arab", "pes_Arab", "en-fa"),
        ("tl", "fil-Latn", "fil_Latn", None),
        ("gn", "gug-Latn", "gug_Latn", None),
        ("kg", "ktu-Latn", "ktu_Latn", None),
        ("ak", "aka-Latn", "twi_Latn_asan1239", None),
        ("tw", "twi-Latn", "twi_Latn_akua1239", None),
        ("ajp", "ajp-Arab", "apc_Arab_sout3123", None),
        ("apc", "apc-Arab", "apc_Arab_nort3139", None),
        ("tzm", "zgh-Tfng", "zgh_Tfng", None),
        ("yue", "yue-Hani", "yue_Hant", None),
        ("nb", "nob-Latn", "nob_Latn", "en-nb"),
        ("om", "gaz-Latn", "gaz_Latn", None),
        ("sw", "swh-Latn", "swh_Latn", None),
        ("ms", "zsm-Latn", "zsm_Latn", "en-ms"),
        ("zh-Hant", "cmn-Hant", "cmn_Hant", None),
    ],
)
def test_each_data_set_gets_its_own_code(text, glotcc, plus, opus):
    language = find_language(text)
    assert (language.glotcc, language.flores_plus, language.opus_100) == (glotcc, plus, opus)


def test_flores_plus_renamed_eleven_codes_and_kept_the_others():
    renamed = sorted(language.flores_200 for language in ALL if language.flores_plus != language.flores_200)
    assert " ".join(renamed) == (
        "ajp_Arab aka_Latn apc_Arab est_Latn grn_Latn kon_Latn tgl_Latn twi_Latn tzm_Tfng zho_Hans zho_Hant"
    )


def test_the_data_sets_cover_as_many_languages_as_published():
    # Belebele has 122, five of them in a Latin script that FLORES-200 lacks.
    assert len(filled("belebele")) == 122 - 5
    # OPUS-100 has 99 beside English, seven of which FLORES-200 lacks (an br fy no se sh wa).
    assert len(set(filled("opus_100"))) == len(filled("opus_100")) == 99 - 7
    for lacking in ("cy", "ga", "gl", "be", "eo", "nn", "yue"):
        assert find_language(lacking).belebele is None
    with refusal(r"^belebele has no Welsh \(cy\); take it off the list or use other data$"):
        find_language("cy").code("belebele")


def test_classes_are_those_of_joshi_and_others():
    classes = {
        5: "en es de ja fr ar zh zh-Hant", 4: "sv tr ko hi fa pt cs ru nl pl hr it vi eu hu fi sr ca",
        3: "id af lv ka da sl sk et uk th he bn ur arz ceb", 2: "mt is ga sw ha yo zu xh am ti wo sa ht",
        1: "cy mk ne so te gu km my jv su mi mn", 0: "ban bem kr mni mos nus shn awa prs",
    }  # fmt: skip
    for expected, codes in classes.items():
        assert {find_language(code).joshi for code in codes.split()} == {expected}, expected
    assert len(filled("joshi")) == 191


@pytest.mark.parametrize(
    ("code", "gib"),
    [
        ("en", 300.8), ("vi", 137.3), ("ru", 278.0), ("id", 148.3), ("fa", 111.6), ("de", 66.6), ("ja", 69.3),
        ("th", 71.7), ("zh", 46.9), ("zh-Hant", 16.6), ("ar", 28.0), ("ka", 9.1), ("sl", 10.3), ("sw", 1.6),
        ("af", 1.3), ("is", 3.2), ("cy", 0.8), ("et", 6.1), ("ne", 3.8), ("mk", 4.8), ("lv", 8.8), ("as", 0.1),
        ("mt", None), ("yue", None), ("ace", None), ("ar-Latn", None),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_published_table(code, gib):
    assert find_language(code).cc100_gib == gib


def test_everyday_names_are_found_and_others_suggested():
    everyday = {
        "Farsi": "fa",
        "Mandarin": "zh",
        "Chinese (Simplified)": "zh",
        "Standard Latvian": "lv",
        "Punjabi": "pa",
    }
    assert {name: find_language(name).short for name in everyday} == everyday
    assert find_language("norwegian bokmal").short == "nb"
    assert find_language("Ta'izzi-Adeni Arabic").short == "acq"
    for text, name in (("welch", "Welsh"), ("Persian", "Western Persian"), ("Vietnamise", "Vietnamese"), ("vie", "vi")):
        with refusal(f"^unknown language '{text}'; did you mean '{name}'[?] Expected one of mt"):
            find_language(text)
    with refusal("did you mean 'Central Kurdish' or 'Northern Kurdish'"):
        find_language("kurdish")


@pytest.mark.parametrize("text", ["", " ", "xx9", "tlh", "qaa", "QAA-latn", "qaa-Latin", "Klingon", "-", "cy mt"])
@fault("a language '{text}'")
def test_an_unknown_language_gets_one_short_line(text):
    with pytest.raises(UserError) as refused:
        find_language(text)
    line = str(refused.value)
    assert line.startswith(f"unknown language '{text}'")
    assert " ".join(PAPER_LANGUAGES) in line
    assert line.endswith("or a GlotCC code such as gla-Latn")
    assert "\n" not in line
    assert len(line) < 250
    note(line)


def test_a_code_of_glotccs_form_needs_no_row():
    for code in ("qaa-Latn", "qaa_Latn", "uzn-Cyrl"):
        glotcc, flores = code.replace("_", "-"), code.replace("-", "_")
        expected = Language(glotcc, glotcc, "unknown", glotcc, flores, flores, flores, None)
        assert find_language(code) == expected
        assert str(expected) == glotcc
        assert (expected.joshi, expected.cc100_gib) == (None, None)


def test_the_table_is_a_clean_file():
    lines = TABLE.read_text(encoding="utf-8").split("\n")
    fields = [field.name for field in dataclasses.fields(Language)]
    assert lines[0].split("\t") == fields
    assert lines.pop() == ""
    assert len(lines) == 205
    for line in lines:
        assert line.count("\t") == len(fields) - 1
        assert [cell.strip() for cell in line.split("\t")] == line.split("\t")


def test_languages_are_read_without_heavy_libraries():
    program = (
        "import sys, lightning_app.languages; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=TABLE.parents[1])
    assert done.stdout.strip() == "[]", done.stderr
