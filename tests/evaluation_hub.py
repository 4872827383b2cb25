"""Data sets of the tasks in the hub's layout, with the columns of the real ones and few rows of invented text."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.flores import read_flores
from datamodules.invented import write_hub
from lightning_app.files import load_checkpoint, save_checkpoint
from lightning_app.languages import find_language

ROWS = 8
MACEDONIAN, ENGLISH = "qad_Cyrl", "qac_Latn"  # invented languages that stand for them


def write_tasks(root: Path) -> Path:
    """Writes every data set that the three suites need in Macedonian, with FLORES of the invented languages."""
    write_hub(root, megabytes={}, dev=4, devtest=300)
    flores = root / "openlanguagedata/flores_plus"
    for split in ("dev", "devtest"):
        for name, stands_for in (("mkd_Cyrl", MACEDONIAN), ("eng_Latn", ENGLISH)):
            shutil.copy(flores / split / f"{stands_for}.parquet", flores / split / f"{name}.parquet")
    theirs, english = (read_flores(str(root), find_language(code), "devtest", root) for code in ("mk", "en"))
    _of_language(root, theirs[:ROWS], english[:ROWS])
    _in_english(root, english[:ROWS])
    return root


def _of_language(root, theirs, english):
    numbers = range(ROWS)
    write(root / "facebook/belebele", "mkd_Cyrl", "test", [
        {"link": "", "question_number": 1, "flores_passage": f"{theirs[n]} {theirs[n - 1]}", "question": theirs[n - 2],
         **{f"mc_answer{k}": " ".join(theirs[n - k].split()[:3]) for k in range(1, 5)},
         "correct_answer_num": str(n % 4 + 1), "dialect": "mkd_Cyrl", "ds": "2023-05-03"}
        for n in numbers
    ])  # fmt: skip
    pairs = [{"translation": {"en": english[n], "mk": theirs[n]}} for n in numbers]
    write(root / "Helsinki-NLP/opus-100", "en-mk", "test", pairs)
    write(root / "jumelet/multiblimp", "mkd", "train", [
        {"sen": text, "wrong_sen": " ".join(reversed(text.split())), "phenomenon": "SV-#"} for text in theirs
    ])  # fmt: skip
    write(root / "mrlbenchmarks/global-piqa-nonparallel", "mkd_cyrl", "test", [
        {"prompt": theirs[n], "solution0": theirs[n - 1], "solution1": theirs[n - 2], "label": n % 2, "language": "mk"}
        for n in numbers
    ])  # fmt: skip
    topics = ("science/technology", "travel", "politics", "sports", "health", "entertainment", "geography")
    rows = [f"{n}\t{topics[n % 7]}\t{theirs[n]}" for n in numbers]
    folder = root / "Davlan/sib200"
    (folder / "data/mkd_Cyrl").mkdir(parents=True)
    (folder / "data/mkd_Cyrl/test.tsv").write_text("\n".join(["index_id\tcategory\ttext", *rows]) + "\n")
    _card(folder, "mkd_Cyrl", {"test": "data/mkd_Cyrl/test.tsv"})


def _in_english(root, english):
    numbers, short = range(ROWS), [" ".join(text.split()[:4]) for text in english]
    mmlu = [
        {"question": english[n], "subject": "high_school_geography", "choices": [short[n - k] for k in range(4)],
         "answer": n % 4} for n in numbers
    ]  # fmt: skip
    for split in ("test", "validation"):
        write(root / "cais/mmlu", "all", split, mmlu, {"test", "validation"})
    write(root / "Rowan/hellaswag", "default", "validation", [
        {"activity_label": "Roof", "ctx_a": english[n], "ctx_b": short[n], "ctx": f"{english[n]} {short[n]}",
         "endings": [short[n - k] for k in range(4)], "label": str(n % 4)} for n in numbers
    ])  # fmt: skip
    write(root / "baber/piqa", "default", "validation", [
        {"goal": english[n], "sol1": short[n], "sol2": short[n - 1], "label": n % 2} for n in numbers
    ])  # fmt: skip
    write(root / "allenai/winogrande", "winogrande_xl", "validation", [
        {"sentence": f"{short[n]} _ {short[n - 1]}", "option1": "kim", "option2": "lee", "answer": str(n % 2 + 1)}
        for n in numbers
    ])  # fmt: skip
    for name in ("ARC-Easy", "ARC-Challenge"):
        rows = [
            {"id": str(n), "question": english[n], "answerKey": "123"[n % 3] if n % 2 else "ABC"[n % 3],
             "choices": {"text": short[: 3 + (n == 0)], "label": list("1234" if n % 2 else "ABCD")[: 3 + (n == 0)]}}
            for n in numbers
        ]  # fmt: skip
        for split in ("validation", "test"):
            write(root / "allenai/ai2_arc", name, split, rows, {"validation", "test"}, {"ARC-Easy", "ARC-Challenge"})


def write(folder, config, split, rows, splits=(), configs=()):
    """Writes a split of a data set as parquet, and the card that names its configurations as the hub's does."""
    path = folder / config / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    names = {each: {s: f"{each}/{s}-*.parquet" for s in splits or {split}} for each in configs or {config}}
    lines = [line for name, files in names.items() for line in _config(name, files)]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *lines, "---", ""]))


def _card(folder, config, files):
    (folder / "README.md").write_text("\n".join(["---", "configs:", *_config(config, files), "---", ""]))


def _config(name, files):
    yield f"- config_name: {name}"
    yield "  data_files:"
    for split, path in files.items():
        yield from (f"  - split: {split}", f"    path: {path}")


def with_longer_context(workplace, folder: Path, tokens: int = 640) -> Path:
    """Returns a copy of the workplace's adapted run on the same base, which reads more tokens at once."""
    base, run = folder / "base/model", folder / "run"
    shutil.copytree(workplace.folder / "runs/base/model", base)
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(
        config.replace('"max_position_embeddings": 128', f'"max_position_embeddings": {tokens}')
    )
    shutil.copytree(workplace.folder / "runs/adapted", run)
    for path in (run / "checkpoints").glob("*.ckpt"):
        checkpoint = load_checkpoint(path)
        checkpoint["neuroglot"]["base"]["name"] = checkpoint["neuroglot"]["tokenizer"] = str(base)
        save_checkpoint(path, checkpoint)
    return run
