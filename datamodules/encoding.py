"""Token ids of documents. Text is text: a special token that is spelled in a document is no special token."""

from transformers import PreTrainedTokenizerBase

_HEAD = 4  # characters; few texts have those of a special token


def encode_documents(tokenizer: PreTrainedTokenizerBase, documents: list[str], is_text: bool = True) -> list[list[int]]:
    """Returns the token ids of each document; special tokens spelled in it become real where it is not ``is_text``."""
    if not documents:
        return []
    encoded = tokenizer(
        documents, add_special_tokens=False, split_special_tokens=is_text, return_attention_mask=False, verbose=False
    )
    return encoded["input_ids"]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Returns the special tokens by id."""
    return {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids that no text has: those of special tokens, but for the unknown one."""
    unknown = {"<unk>", "[UNK]", tokenizer.unk_token}
    return [number for number, name in special_tokens(tokenizer).items() if name not in unknown]


def is_spelled(names: list[str], documents: list[str]) -> bool:
    """Tells whether any document spells any of the special tokens.

    >>> is_spelled(["<s>", "<|end|>"], ["a < s>", "<|en"]), is_spelled(["<s>", "<|end|>"], ["a", "b<|end|>c"])
    (False, True)
    """
    text = "\n".join(documents)
    heads = [head for head in {name[:_HEAD] for name in names} if head in text]
    return bool(heads) and any(name in text for name in names if name[:_HEAD] in heads)
