"""A parallel corpus of eight invented languages in the hub's layout, for the offline demo and the tests.

It stands in for GlotCC-V1 and FLORES+ where there is no network: no licence, a few seconds, five scripts, two pairs of
related languages (qaa/qab and qad/qae: mostly the same roots under regular sound changes). Sentences are drawn as
meanings, then said with each language's lexicon, morphology and word order, so a small model can learn them and tell
them apart. It is not a benchmark: nothing measured on it speaks about real languages.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import accumulate, product
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

CONCEPTS = {"noun": 190, "verb": 80, "adjective": 50, "time": 24}
TOPICS = 10  # coprime with 3, or a topic would own only transitive or only intransitive verbs
TOPIC_BOOST = 12.0
INNOVATION = 0.15  # share of a language's roots that are not its family's
MAX_PARALLEL = 5_000  # holding out so many forbids one sentence in seven to the documents

# Columns of the two sets on the hub, strings where no type is given.
_GLOTCC_COLUMNS = """content warc-target-uri warc-date warc-record-id quality-warnings:list categories:list
    identification-language identification-prob:double identification-consistency:double script-percentage:double
    num-sents:int64 content-length:int64 tlsh"""
_FLORES_COLUMNS = "id:int64 iso_639_3 iso_15924 glottocode text url domain topic has_image has_hyperlink last_updated"
_GLOTCC_CONFIG = "- config_name: {code}\n  data_files: v1.0/{code}/*.parquet"
_FLORES_CONFIG = """- config_name: {name}\n  data_files:
  - split: dev\n    path: dev/{name}.parquet
  - split: devtest\n    path: devtest/{name}.parquet"""


class Phrase(NamedTuple):
    """A noun phrase; nouns and adjectives are concept numbers, frequent ones first."""

    noun: int
    is_plural: bool
    adjective: int | None


class Clause(NamedTuple):
    """Who did what to whom, where and when, and what conjunction joins it to a clause before it."""

    agent: Phrase
    verb: int
    tense: int  # 0 present, 1 past, 2 future
    is_negated: bool
    patient: Phrase | None
    place: Phrase | None
    time: int | None
    conjunction: int  # 0 and, 1 but, 2 because

    @property
    def core(self) -> tuple[int, int, int | None]:
        """What a held-out clause is known by, so that no richer wording of it, which may contain it, is written."""
        return self.agent.noun, self.verb, self.patient and self.patient.noun


Sentence = tuple[Clause, ...]

_CUMULATIVE_WEIGHTS = {  # Zipf's law over each kind of concept, raised for those of the topic
    (kind, topic): list(accumulate((TOPIC_BOOST if i % TOPICS == topic else 1.0) / (i + 3) for i in range(count)))
    for (kind, count), topic in product(CONCEPTS.items(), range(TOPICS))
}


def _draw(rng: Random, kind: str, topic: int) -> int:
    return rng.choices(range(CONCEPTS[kind]), cum_weights=_CUMULATIVE_WEIGHTS[kind, topic])[0]


def _draw_phrase(rng: Random, topic: int, cast: Sequence[int] = ()) -> Phrase:
    noun = rng.choice(cast) if cast and rng.random() < 0.6 else _draw(rng, "noun", topic)
    return Phrase(noun, rng.random() < 0.3, _draw(rng, "adjective", topic) if rng.random() < 0.35 else None)


def _draw_sentence(rng: Random, topic: int, cast: Sequence[int] = ()) -> Sentence:
    """Draws clauses whose tense follows their time word and whose patient suits their verb, for a model to learn."""
    clauses = []
    for _ in range(2 if rng.random() < 0.3 else 1):
        verb = _draw(rng, "verb", topic)
        time = _draw(rng, "time", topic) if rng.random() < 0.4 else None
        tense = rng.randrange(3) if time is None else time % 3
        patient = _draw_phrase(rng, verb % TOPICS) if verb % 3 else None
        place = _draw_phrase(rng, topic) if rng.random() < 0.3 else None
        agent, is_negated = _draw_phrase(rng, topic, cast), rng.random() < 0.12
        clauses.append(Clause(agent, verb, tense, is_negated, patient, place, time, rng.randrange(3)))
    return tuple(clauses)


@dataclass(frozen=True, eq=False)  # eq=False hashes by identity, which the cache of words needs to be quick
class InventedLanguage:
    """How a language makes and inflects its words and orders a clause; the lists in strings are space-separated."""

    code: str  # GlotCC code; the ISO 639-3 part is one reserved for private use
    sounds: tuple[str, str, str, str]  # consonants C, vowels V, final consonants K, and syllables made of them
    order: str  # S agent, V verb, O patient, P place, T time
    adjective_first: bool
    conjunctions: str  # and, but, because
    # Plural, object, place, past, future, verb of a plural agent, negation; _en is a suffix, ma_ a prefix, ul~_ a
    # particle, and _ alone marks nothing.
    markers: str
    rules: tuple[tuple[str, str], ...] = ()  # (pattern, replacement): sound changes, spelling
    comma: str = ","
    stop: str = "."

    def _spell(self, text: str) -> str:
        return reduce(lambda text, rule: re.sub(rule[0], rule[1], text), self.rules, text)

    def _invent(self, rng: Random, syllables: int) -> str:
        sounds = dict(zip("CVK", (inventory.split() for inventory in self.sounds), strict=False))
        return "".join(rng.choice(sounds[slot]) for slot in "".join(rng.choices(self.sounds[3].split(), k=syllables)))

    @cached_property
    def _roots(self) -> dict[str, list[str]]:
        """A root for every concept, all spelled differently, shorter for frequent concepts."""
        own = Random(self.code)
        taken = set(self._spell(f"{self.markers} {self.conjunctions}".replace("_", "").replace("~", " ")).split())
        roots: dict[str, list[str]] = {kind: [] for kind in CONCEPTS}
        for kind, rank in ((kind, rank) for kind, count in CONCEPTS.items() for rank in range(count)):
            origin = self.code if own.random() < INNOVATION else self.sounds
            root = self._invent(Random(f"{origin} {kind} {rank}"), 1 + (rank >= 5) + (rank >= 70))
            while self._spell(root) in taken:
                root += self._invent(own, 1)
            taken.add(self._spell(root))
            roots[kind].append(root)
        return roots

    @cache  # noqa: B019  (the languages are constants, nothing is kept alive for longer than it would be)
    def word(self, kind: str, concept: int, *markers: str) -> str:
        """Inflects a root by markers, innermost first, and spells it."""
        inflected = reduce(lambda word, marker: marker.replace("_", word), markers, self._roots[kind][concept])
        return self._spell(inflected.replace("~", " "))

    def _phrase(self, phrase: Phrase, plural: str, case: str) -> str:
        words = [self.word("noun", phrase.noun, plural if phrase.is_plural else "_", case)]
        if phrase.adjective is not None:
            words.insert(0 if self.adjective_first else 1, self.word("adjective", phrase.adjective))
        return " ".join(words)

    def _clause(self, clause: Clause) -> str:
        plural, accusative, locative, past, future, concord, negation = self.markers.split()
        concord, negation = concord if clause.agent.is_plural else "_", negation if clause.is_negated else "_"
        slots = {
            "S": self._phrase(clause.agent, plural, "_"),
            "V": self.word("verb", clause.verb, ("_", past, future)[clause.tense], concord, negation),
            "O": clause.patient and self._phrase(clause.patient, plural, accusative),
            "P": clause.place and self._phrase(clause.place, plural, locative),
            "T": None if clause.time is None else self.word("time", clause.time),
        }
        return " ".join(text for slot in self.order if (text := slots[slot]))

    def render(self, sentence: Sentence) -> str:
        """Says a meaning in this language."""
        text, conjunctions = self._clause(sentence[0]), self.conjunctions.split()
        for clause in sentence[1:]:
            text += f"{self.comma} {conjunctions[clause.conjunction]} {self._clause(clause)}"
        # title, not upper: Georgian has capitals in Unicode, but starts no sentence with them.
        return text[0].title() + text[1:] + self.stop


_NORTH = ("p t t k k b d g m n n s s l r v", "a a e e i o u", "n r s l t", "CV CV CVK VK")
_ISLE = ("mb nd ng p t k m w l h y ny", "a a i u e o", "", "CV CV CV CV V")
_STEPPE = ("к қ т б д с з ш ч л м н й г", "а а е ы и о у ү", "р л н к т ш", "CV CVK CVK")
_GULF = ("π τ κ θ φ χ σ λ ρ μ ν δ γ β ψ", "α ε ι ο υ η ω", "σ ν ξ ρ", "CV CV VK CVK")
_PEAK = ("ბ გ დ ზ კ ლ მ რ ს ყ შ ც ხ ტყ მც სხ გრ ქვ", "ა ა ე ი ო უ", "ლ რ ს დ ბ", "CV CVK CV")
_PLAIN = ("क क ख ग च ज ट त द न प ब म य र ल व श स ह", "अ आ इ ई उ ए ओ", "न र म त स", "CV CV CVK")
# A Devanagari vowel after a consonant is a sign on it; the inherent one is not written, and leaves last.
_SIGNS = tuple((f"(?<=[क-ह]){vowel}", sign) for vowel, sign in zip("आइईउएओ", "ािीुेो", strict=True))
_ABUGIDA = (("([क-ह])(?=[क-ह])", r"\1्"), *_SIGNS, ("(?<=[क-ह])अ", ""))

# fmt: off
LANGUAGES = {language.code: language for language in (
    InventedLanguage("qaa-Latn", _NORTH, "TSVOP", False, "ro olta dages", "_en _ ul~_ _it sa~_ _u mek~_"),
    InventedLanguage("qab-Latn", _NORTH, "TSVPO", False, "ro oldas mi", "_en _ ul~_ _it vos~_ _u mek~_", (
        ("k(?=[ei])", "č"), (r"s\b", ""), ("(?<=[aeiou])t(?=[aeiou])", "d"), ("(?<=[aeiou])p", "b"), (r"u\b", "o"))),
    InventedLanguage("qac-Latn", _ISLE, "VSOPT", False, "na nguyo kwambi", "ma_ _ _hi li_ ta_ _wo ha_"),
    InventedLanguage("qad-Cyrl", _STEPPE, "TSPOV", True, "йо летен чүнек", "_таш _ын _ге _ду _ақа _м _бен"),
    InventedLanguage("qae-Cyrl", _STEPPE, "SOPTV", True, "йа летен ишпе", "_нар _ын _ге _ду _ақа _м _бен", (
        ("қ", "х"), ("ч", "ш"), ("(?<=[аеыиоуү])б", "в"), ("ү", "ө"), ("г(?=[еи])", "й"), (r"т\b", "д"))),
    InventedLanguage("qaf-Grek", _GULF, "VOSPT", False, "γε ωμα θιρα", "_ιμ χο~_ επι_ ο_α λα~_ _ντε ψη~_",
                     ((r"σ\b", "ς"),), comma=" ·"),
    InventedLanguage("qag-Geor", _PEAK, "OSVTP", True, "დუ მაგრე სხინო", "_ულ _ას _ქე გი_ მო_ნი _ტან ხარ~_"),
    InventedLanguage("qah-Deva", _PLAIN, "STPOV", True, "तोर बली कुना", "_ओम _~कए _~पअर _इयआ _एगअ _न नइ_", _ABUGIDA,
                     comma="", stop="।"),
)}
# fmt: on


def parallel_meanings(count: int, seed: int = 0) -> list[Sentence]:
    """Draws transitive sentences, no two clauses of which share a core; a smaller count gives a prefix of a larger."""
    rng, sentences, seen = Random(f"parallel {seed}"), list[Sentence](), set[object]()
    while len(sentences) < count:
        sentence = _draw_sentence(rng, rng.randrange(TOPICS))
        cores = {clause.core for clause in sentence}
        if all(clause.patient for clause in sentence) and len(cores) == len(sentence) and seen.isdisjoint(cores):
            seen |= cores
            sentences.append(sentence)
    return sentences


def parallel_sentences(count: int, seed: int = 0) -> dict[str, list[str]]:
    """Returns sentences by language code; sentence i means the same in every language."""
    meanings = parallel_meanings(count, seed)
    return {code: [language.render(meaning) for meaning in meanings] for code, language in LANGUAGES.items()}


def documents(
    language: InventedLanguage, megabytes: float, seed: int = 0, held_out: Sequence[Sentence] = ()
) -> Iterator[str]:
    """Yields documents until their UTF-8 text reaches the size (1 MB is 10**6 bytes); the last may exceed it.

    A document keeps to a topic and a small cast, and no clause shares its core with one held out. Every language draws
    meanings of its own; a smaller size gives a prefix of a larger.
    """
    rng, size_bytes = Random(f"documents {language.code} {seed}"), 0
    forbidden = {clause.core for sentence in held_out for clause in sentence}
    while size_bytes < megabytes * 1e6:
        topic = rng.randrange(TOPICS)
        cast = [_draw(rng, "noun", topic) for _ in range(4)]
        text, length = "", rng.randint(5, 15)
        while length:
            sentence = _draw_sentence(rng, topic, cast)
            if forbidden.isdisjoint(clause.core for clause in sentence):
                text += language.render(sentence) + ("\n" if rng.random() < 0.2 else " ")
                length -= 1
        size_bytes += len(text[:-1].encode())
        yield text[:-1]


def _replace_file(path: Path, content: bytes) -> None:
    """Writes beside the target and renames, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _write_table(path: Path, columns: str, values: Mapping[str, Any]) -> None:
    rows, arrays = len(next(iter(values.values()))), {}
    for name, _, kind in (column.partition(":") for column in columns.split()):
        arrow_type = pa.list_(pa.string()) if kind == "list" else pa.type_for_alias(kind or "string")
        arrays[name] = pa.array(values.get(name, [None] * rows), arrow_type)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays), sink, row_group_size=250)
    _replace_file(path, sink.getvalue().to_pybytes())


def write_hub(
    root: Path, *, megabytes: float | Mapping[str, float] = 1.0, dev: int = 200, devtest: int = 200, seed: int = 0
) -> None:
    """Writes cis-lmu/GlotCC-V1 and openlanguagedata/flores_plus under root, over files already there.

    No sentence of dev or devtest occurs in the other set or in any document. `megabytes` sizes the documents of every
    language, or by code, and a code left out gets none. The seed changes what is said, never the languages.
    """
    sizes = megabytes if isinstance(megabytes, Mapping) else dict.fromkeys(LANGUAGES, megabytes)
    if not set(sizes) <= set(LANGUAGES) or not all(0 < size < float("inf") for size in sizes.values()):
        raise ValueError(f"megabytes is {megabytes}, expected sizes above 0 for languages among {', '.join(LANGUAGES)}")
    if min(dev, devtest) < 0 or dev + devtest > MAX_PARALLEL:
        raise ValueError(f"dev is {dev} and devtest {devtest}, expected 0 to {MAX_PARALLEL} sentences together")
    glotcc, flores = root / "cis-lmu/GlotCC-V1", root / "openlanguagedata/flores_plus"
    held_out = parallel_meanings(dev + devtest, seed)
    for code, size in sizes.items():
        texts = list(documents(LANGUAGES[code], size, seed, held_out))
        counts = [text.count(LANGUAGES[code].stop) for text in texts]
        values = {"content": texts, "num-sents": counts, "content-length": [len(text) for text in texts]}
        _write_table(glotcc / f"v1.0/{code}/{code}_0.parquet", _GLOTCC_COLUMNS, values)
    for code, split in product(LANGUAGES, ("dev", "devtest")):
        texts = [LANGUAGES[code].render(s) for s in (held_out[:dev] if split == "dev" else held_out[dev:])]
        iso_639_3, iso_15924 = ([part] * len(texts) for part in code.split("-"))
        values = {"id": range(1, len(texts) + 1), "text": texts, "iso_639_3": iso_639_3, "iso_15924": iso_15924}
        _write_table(flores / split / f"{code.replace('-', '_')}.parquet", _FLORES_COLUMNS, values)
    for folder, config, codes in ((glotcc, _GLOTCC_CONFIG, sizes), (flores, _FLORES_CONFIG, LANGUAGES)):
        configs = [config.format(code=code, name=code.replace("-", "_")) for code in codes]
        _replace_file(folder / "README.md", "\n".join(["---", "configs:", *configs, "---", ""]).encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="datamodules.invented", description="Write a corpus of invented languages.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that stands for the hub")
    parser.add_argument("--megabytes", type=float, default=1.0, help="documents per language (default: 1.0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the meanings (default: 0)")
    options = parser.parse_args(argv)
    try:
        write_hub(options.out, megabytes=options.megabytes, seed=options.seed)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Wrote {len(LANGUAGES)} invented languages, {options.megabytes:g} MB each, to {options.out}")


if __name__ == "__main__":
    main()
