"""Answers to many prompts at once and likelihoods of many continuations, against plain transformers one by one."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lightning_app.model.attention import attend_without_masks
from lightning_app.model.generation import Decoding, answer_prompts, count_cut
from lightning_app.model.likelihood import log_likelihoods
from tests.conftest import tiny_model
from tests.test_methods import put_to_work, train

LETTERS = ["<pad>", "<s>", "</s>", "\n", *(chr(code) for code in range(32, 125))]
PROMPTS = ["To be", "or not to be, that is it:", "x", "Answer: " * 3, "Q", "whether 'tis nobler"]
DECODING = Decoding(("F", "Q:"), 20, 1.3)


def letters(begins: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters without a padding token, for the tiny models' vocabulary of 97."""
    backend = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(LETTERS)}, unk_token="~"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    if begins:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def one_by_one(model, tokenizer, prompts, decoding):
    """Without padding, stops while it generates, or a cache."""
    answers = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=decoding.max_new_tokens, do_sample=False,
            repetition_penalty=decoding.repetition_penalty, pad_token_id=2, use_cache=False,
        )  # fmt: skip
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        for stop in decoding.stops:
            text = text.split(stop)[0]
        answers.append(text)
    return answers


@pytest.mark.parametrize(
    ("architecture", "begins"),
    [("llama", False), ("llama", True), ("gemma3", True), ("cohere2", False), ("phi3", True)],
)
def test_answers_do_not_depend_on_what_else_is_in_the_batch(architecture, begins):
    model, tokenizer = tiny_model(architecture).eval(), letters(begins)
    model.get_output_embeddings().weight[tokenizer.eos_token_id].mul_(2)  # so that some answers end by themselves
    prompts = [*PROMPTS, *(letter * times for times, letter in enumerate("abcdefgh", start=1))]
    decoding = Decoding((), 20, 1.3)
    expected = one_by_one(model, tokenizer, prompts, decoding)
    assert len(set(expected)) > 2
    attend_without_masks(model)
    attention, state = model.config._attn_implementation, torch.get_rng_state()
    for batch_size in (4, 14):
        assert answer_prompts(model, tokenizer, prompts, decoding, batch_size) == expected
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), state)


def test_an_answer_ends_at_a_stop_and_no_later():
    """Steps are counted: with every letter a stop, one is enough."""
    model, tokenizer = tiny_model("llama").eval(), letters(True)
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    every = Decoding(tuple(LETTERS[3:]), 20)
    assert answer_prompts(model, tokenizer, PROMPTS, every, 6) == [""] * 6
    assert len(steps) == 1
    whole = answer_prompts(model, tokenizer, PROMPTS, Decoding((), 20, 1.3), 6)
    cut = answer_prompts(model, tokenizer, PROMPTS, DECODING, 6)
    assert [DECODING.cut(text) for text in whole] == cut
    assert whole != cut


@pytest.mark.parametrize(
    ("name", "keys"),
    [("subnetwork", {}), ("subnetwork", {"engine": "masked"}), ("full", {}), ("lora", {"rank": 2}), ("ia3", {})],
)
def test_a_method_at_work_answers_as_the_model_that_its_checkpoint_makes(name, keys):
    method, model, attached, neurons = put_to_work(name, keys)
    train(model, attached)
    plain, tokenizer = tiny_model("llama"), letters(True)
    method.restore(plain, neurons, {name: weight.clone() for name, weight in attached.weights().items()})
    decoding = Decoding((), 20, 1.3)
    expected = one_by_one(plain.eval(), tokenizer, PROMPTS, decoding)
    assert expected != one_by_one(tiny_model("llama").eval(), tokenizer, PROMPTS, decoding)
    attend_without_masks(model.eval())
    requires = [weight.requires_grad for weight in model.parameters()]
    assert answer_prompts(model, tokenizer, PROMPTS, decoding, 4) == expected
    assert [weight.requires_grad for weight in model.parameters()] == requires


def test_a_prompt_too_long_for_the_context_loses_its_beginning_and_leaves_room_to_answer():
    model, tokenizer, decoding = tiny_model("llama").eval(), letters(True), Decoding((), 20)
    long = "".join(LETTERS[5:60])
    assert count_cut(model, tokenizer, ["short", long], decoding) == 1
    (cut,) = answer_prompts(model, tokenizer, [long], decoding, 1)
    (expected,) = one_by_one(model, letters(False), [long[-44:]], decoding)  # 64 tokens of context, 20 of the answer
    assert cut == expected


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "cohere2", "granite"])
@pytest.mark.parametrize("tokens_at_once", [1, 60, 10_000])
def test_likelihoods_are_those_of_a_loop(architecture, tokens_at_once):
    """gemma2 caps its logits, cohere2 and granite scale them."""
    model, tokenizer = attend_without_masks(tiny_model(architecture).eval()), letters(True)
    pairs = [
        (context, continuation) for context in ("To be", "or not", "x" * 30) for continuation in (" a", "!", " be?")
    ]
    expected = []
    for context, continuation in pairs:
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].float().log_softmax(-1)
        first = len(tokenizer(context)["input_ids"])
        expected.append(sum(log_p[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1])))
    state = torch.get_rng_state()
    assert log_likelihoods(model, tokenizer, pairs, tokens_at_once) == pytest.approx(expected, abs=1e-4)
    assert torch.equal(torch.get_rng_state(), state)
