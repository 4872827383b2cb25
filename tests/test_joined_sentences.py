"""Validation text: sentences joined to blocks are the tokens of the joined text."""

import pytest
import torch

from datamodules.flores import join_blocks
from datamodules.tokenizers import start_token
from tests.faults import fault, refusal
from tests.tokenizer_kinds import EOS, GEORGIAN, KINDS, LATIN, TEXTS, made, naive_runs, sentences_of


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return made(request.param)


@pytest.mark.parametrize("size", [2, 3, 24, 64, 200, 4096])
@pytest.mark.parametrize("language", [LATIN, GEORGIAN])
def test_validation_blocks_are_the_tokens_of_the_joined_text(hub, tokenizer, size, language):
    sentences = sentences_of(hub, language)
    blocks = join_blocks(sentences, tokenizer, size)
    room, begin = size - 1, start_token(tokenizer) if start_token(tokenizer) is not None else EOS
    expected = []
    for run in naive_runs(sentences, tokenizer, lambda first: -(-first // room) * room):
        ids = tokenizer(" ".join(run), add_special_tokens=False)["input_ids"]
        expected += [[begin, *ids[start : start + room]] for start in range(0, len(ids), room)]
    assert [block.input_ids.tolist() for block in blocks] == expected
    assert all(block.input_ids.dtype == torch.int64 for block in blocks)
    spaces = len(naive_runs(sentences, tokenizer, lambda first: -(-first // room) * room)) - 1
    assert sum(block.text_bytes for block in blocks) == len(" ".join(sentences).encode()) - spaces
    if size == 200:  # no sentence is split
        for block in blocks:
            assert len(tokenizer.decode(block.input_ids[1:]).encode()) == block.text_bytes


@pytest.mark.parametrize("size", [2, 24, 64, 4096])
def test_byte_level_blocks_are_those_of_the_sentences_one_by_one(hub, size):
    """What such a tokenizer makes of a text does not depend on what is joined to it after a space."""
    tokenizer, room = made("byte-level"), size - 1
    expected, ids, text_bytes = [], [], 0
    for index, sentence in enumerate(sentences_of(hub, GEORGIAN)):
        piece = f" {sentence}" if index else sentence
        if ids and len(ids) + len(tokenizer(piece)["input_ids"]) > room:
            expected.append(([EOS, *ids], text_bytes))
            piece, ids, text_bytes = sentence, [], 0
        ids, text_bytes = ids + tokenizer(piece)["input_ids"], text_bytes + len(piece.encode())
        while len(ids) > room:
            expected.append(([EOS, *ids[:room]], text_bytes))
            ids, text_bytes = ids[room:], 0
    expected.append(([EOS, *ids], text_bytes))
    blocks = join_blocks(sentences_of(hub, GEORGIAN), tokenizer, size)
    assert [(block.input_ids.tolist(), block.text_bytes) for block in blocks] == expected


def test_joining_tokenises_the_text_a_few_times_not_once_a_sentence(tokenizer):
    sentences = [text[:100].replace("\n", " ") for text in TEXTS] * 3
    counted = []

    class Counting:
        eos_token_id, bos_token_id = EOS, tokenizer.bos_token_id

        def __call__(self, text, **keys):
            counted.append(len(text))
            return tokenizer(text, **keys)

    join_blocks(sentences, Counting(), 4096)
    assert sum(counted) < 8 * len(" ".join(sentences))


@fault("blocks of one token in validation")
def test_a_block_without_room_for_text_is_refused(tokenizer):
    with refusal("block_size is 1; expected 2 or more"):
        join_blocks(["a sentence"], tokenizer, 1)
