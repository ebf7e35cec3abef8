"""Alignment of two tokenizers, on texts as they come."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from itrd_nlp.distillation.alignment import PADDING, feature_weights, move_spans, span_weights, text_spans

CORPUS = [
    "Ada Lovelace wrote the first programme in 1843.",
    "Zoë's naïve café costs €3,14 — or ½ of that?!",
    "東京と大阪の間 नमस्ते שלום عليكم 👩‍👩‍👧 e\u0301 a\u200bb",
    "the the the engine engines engineering unbelievable",
]


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of its own kind, casing, special tokens and vocabulary, trained on a few texts."""
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
        special, pattern = (
            {"cls_token": "[CLS]", "sep_token": "[SEP]"},
            ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        )
        made.train_from_iterator(CORPUS, trainer)
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["[PAD]", "[UNK]", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        special, pattern = {"cls_token": "<s>", "sep_token": "</s>"}, ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
        made.train_from_iterator(CORPUS, trainer)
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["[PAD]", "[UNK]", "<cls>", "<sep>"], unk_token="[UNK]"
        )
        special, pattern = {"cls_token": "<cls>", "sep_token": "<sep>"}, ("<cls> $A <sep>", "<cls> $A <sep> $B <sep>")
        made.train_from_iterator(CORPUS, trainer)
    ids = [(token, made.token_to_id(token)) for token in special.values()]
    made.post_processor = processors.TemplateProcessing(single=pattern[0], pair=pattern[1], special_tokens=ids)
    if kind == "bytes":
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), made.post_processor])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **special)


KINDS = ("wordpiece", "bytes", "unigram")
PARTS = [
    "e\u0301",
    "👩‍👩‍👧",
    "🇫🇷",
    "\u200b",
    "\u200d",
    "東京",
    "ﷺ",
    "שלום",
    "  \t \n ",
    "\x00",
    "\x7f",
    "ﬁ",
    "İ",
    "ß",
    "Ǆ",
    "½",
]
TEXT = st.lists(st.one_of(st.text(max_size=8), st.sampled_from([*PARTS, *CORPUS])), max_size=6).map("".join)


def spans(kind: str, texts: tuple[str, ...], limit: int = 10**6) -> torch.Tensor:
    """(1, n, 2) spans of an example; ``limit``: tokens beyond which it is cut."""
    tokens = tokenizer(kind)(*texts, return_offsets_mapping=True, truncation="longest_first", max_length=limit)
    starts = [0, len(texts[0]) + 1]
    return torch.tensor([text_spans(tokens["offset_mapping"], tokens.sequence_ids(0), starts)])


def padded(x: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([x, torch.full((1, count, 2), PADDING)], dim=1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.tuples(TEXT, TEXT), teacher=st.sampled_from(KINDS), student=st.sampled_from(KINDS), cut=st.integers(6, 60)
)
def test_every_token_with_characters_has_a_feature_and_no_probability_is_lost(texts, teacher, student, cut):
    theirs, ours = spans(teacher, texts), spans(student, texts, cut)
    weights = feature_weights(padded(theirs, 3), padded(ours, 2))
    has_text = padded(theirs, 3)[..., 0] >= 0
    torch.testing.assert_close(weights.sum(2), has_text.float())
    assert (weights >= 0).all() and not weights[..., -2:].any()
    moved = span_weights(padded(theirs, 3), padded(ours, 2))
    torch.testing.assert_close(moved.sum(1)[:, :-2], torch.ones(1, ours.shape[1]))
    assert (moved >= 0).all() and not moved[:, -3:].any() and not moved[..., -2:].any()
    logits = torch.linspace(-9, 9, ours.shape[1] + 2)[None].clone()
    logits[:, -2:] = -1e4
    assert move_spans(logits, moved).exp().sum() == pytest.approx(1, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(texts=st.tuples(TEXT, TEXT), kind=st.sampled_from(KINDS))
def test_one_tokenizer_gives_the_identity(texts, kind):
    own = spans(kind, texts)
    eye = torch.eye(own.shape[1])
    assert torch.equal(span_weights(own, own)[0], eye)
    assert torch.equal(feature_weights(own, own)[0], eye * (own[0, :, :1] >= 0))


def test_weights_are_shares_of_characters():
    teacher = torch.tensor([[(-1, -1), (0, 4), (5, 9), (-2, -2)]])
    student = torch.tensor([[(-1, -1), (0, 1), (1, 6), (6, 9), (-2, -2)]])
    expected = [[0, 0, 0, 0, 0], [0, 1 / 4, 3 / 4, 0, 0], [0, 0, 1 / 4, 3 / 4, 0], [0, 0, 0, 0, 0]]
    torch.testing.assert_close(feature_weights(teacher, student), torch.tensor([expected]))
    expected = [[1, 0, 0, 0, 0], [0, 1, 3 / 4, 0, 0], [0, 0, 1 / 4, 1, 0], [0, 0, 0, 0, 1]]
    torch.testing.assert_close(span_weights(teacher, student), torch.tensor([expected]))


def test_special_tokens_meet_those_of_their_place():
    bert = torch.tensor([[(-1, -1), (0, 2), (-2, -2), (3, 5), (-3, -3)]])
    mpnet = torch.tensor([[(-1, -1), (0, 2), (-2, -2), (-2, -2), (3, 5), (-3, -3)]])
    assert span_weights(mpnet, bert)[0].argmax(0).tolist() == [0, 1, 2, 4, 5]
    assert span_weights(bert, mpnet)[0].argmax(0).tolist() == [0, 1, 2, 2, 3, 4]
    without = torch.tensor([[(0, 2), (3, 5)]])  # a tokenizer without special tokens
    assert span_weights(without, bert)[0].argmax(0).tolist() == [0, 0, 0, 1, 0]


def test_a_token_whose_characters_the_other_dropped_gets_the_nearest():
    teacher = torch.tensor([[(0, 1), (4, 5), (9, 12)]])
    student = torch.tensor([[(0, 2), (7, 8)]])
    assert feature_weights(teacher, student)[0].tolist() == [[1, 0], [1, 0], [0, 1]]  # of two as near, the first


def test_moved_logits_of_the_same_tokens_are_log_probabilities():
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(5).expand(2, 5, 5)
    torch.testing.assert_close(move_spans(logits, eye), logits.log_softmax(1))
