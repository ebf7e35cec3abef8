"""Alignment of two tokenizers, on texts as they come."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from itrd_nlp.distillation.alignment import ALIGNMENT, WEIGHTS, Span, align, align_features, align_spans, text_spans
from itrd_nlp.tasks.token_classification import tokenise_words
from itrd_nlp.tasks.tokenising import tokenise

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


def spans(kind: str, texts: tuple[str, ...], limit: int = 10**6) -> list[Span]:
    """The spans of an example; ``limit``: tokens beyond which it is cut."""
    batch = [[text] for text in texts]  # a single empty text would be no second one
    tokens = tokenizer(kind)(*batch, return_offsets_mapping=True, truncation="longest_first", max_length=limit)
    return text_spans(tokens["offset_mapping"][0], tokens.sequence_ids(0), [0, len(texts[0]) + 1], texts)


def weights(teacher, student):
    """(t, s) how much each student token counts in a teacher's, and where its probability goes."""
    made = torch.zeros(2, len(teacher), len(student))
    for t, s, *both in align(teacher, student):
        made[:, t, s] = torch.tensor(both)
    return made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.tuples(TEXT, TEXT), teacher=st.sampled_from(KINDS), student=st.sampled_from(KINDS), cut=st.integers(6, 60)
)
def test_every_token_has_a_feature_and_no_probability_is_lost(texts, teacher, student, cut):
    theirs, ours = spans(teacher, texts), spans(student, texts, cut)
    features, moved = weights(theirs, ours)
    torch.testing.assert_close(features.sum(1), torch.ones(len(theirs)))
    torch.testing.assert_close(moved.sum(0), torch.ones(len(ours)))
    assert (features >= 0).all() and (moved >= 0).all()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.tuples(TEXT, TEXT), teacher=st.sampled_from(KINDS), student=st.sampled_from(KINDS), cut=st.integers(6, 60)
)
def test_no_token_of_text_that_the_student_does_not_read_is_a_sample(texts, teacher, student, cut):
    rows = {"text": [texts[0]], "text_pair": [texts[1]]}
    mask = tokenise(rows, tokenizer(student), cut, True, tokenizer(teacher))["teacher_special_tokens_mask"][0]
    theirs, ours = spans(teacher, texts, cut), spans(student, texts, cut)
    is_cut = len(spans(student, texts)) > len(ours)
    for (begin, end), special in zip(theirs, mask, strict=True):
        if begin < 0 or not is_cut:
            assert special == (begin < 0)
            continue
        same = [own for own in ours if own[0] >= 0 and (own[0] > len(texts[0])) == (begin > len(texts[0]))]
        shares = any(begin < last and first < end for first, last in same)
        behind = all(last <= begin for _, last in same)
        before = all(end <= first for first, _ in same)
        assert not (special and shares) and (special or shares or not behind)
        assert behind or before or not special


def test_words_that_the_student_does_not_read_are_no_samples():
    words = ["the", "engine", "engines", "engineering", "unbelievable"]
    columns = tokenise_words({"text": [words]}, tokenizer("bytes"), 6, tokenizer("wordpiece"))
    theirs = tokenizer("wordpiece")(words, is_split_into_words=True, truncation=True, max_length=6)
    ours = tokenizer("bytes")(words, is_split_into_words=True, truncation=True, max_length=6).word_ids()
    read = max(word for word in ours if word is not None)
    special = columns["teacher_special_tokens_mask"][0].tolist()
    assert {word for word, each in zip(theirs.word_ids(), special, strict=True) if not each} <= {*range(read + 1)}
    assert special[0] == special[-1] == 1 and 0 in special


@settings(max_examples=60, deadline=None)
@given(texts=st.tuples(TEXT, TEXT), kind=st.sampled_from(KINDS))
def test_one_tokenizer_gives_the_identity(texts, kind):
    own = spans(kind, texts)
    features, moved = weights(own, own)
    assert torch.equal(moved, torch.eye(len(own))) and torch.equal(features, moved)


def test_weights_are_shares_of_characters():
    teacher = [(-1, -1), (0, 4), (5, 9), (-2, -2)]
    student = [(-1, -1), (0, 1), (1, 6), (6, 9), (-2, -2)]
    features, moved = weights(teacher, student)
    expected = [[1, 0, 0, 0, 0], [0, 1 / 4, 3 / 4, 0, 0], [0, 0, 1 / 4, 3 / 4, 0], [0, 0, 0, 0, 1]]
    torch.testing.assert_close(features, torch.tensor(expected))
    expected = [[1, 0, 0, 0, 0], [0, 1, 3 / 4, 0, 0], [0, 0, 1 / 4, 1, 0], [0, 0, 0, 0, 1]]
    torch.testing.assert_close(moved, torch.tensor(expected))


def test_special_tokens_meet_those_of_their_slot():
    bert = [(-1, -1), (0, 2), (-2, -2), (3, 5), (-3, -3)]
    mpnet = [(-1, -1), (0, 2), (-2, -2), (-2, -2), (3, 5), (-3, -3)]
    assert weights(mpnet, bert)[1].argmax(0).tolist() == [0, 1, 2, 4, 5]
    assert weights(bert, mpnet)[1].argmax(0).tolist() == [0, 1, 2, 2, 3, 4]
    without = [(0, 2), (3, 5)]  # a tokenizer without special tokens
    assert weights(without, bert)[1].argmax(0).tolist() == [0, 0, 0, 1, 0]


def test_a_token_whose_characters_the_other_dropped_gets_the_nearest():
    features, _ = weights([(0, 1), (4, 5), (9, 12)], [(0, 2), (7, 8)])
    assert features.tolist() == [[1, 0], [1, 0], [0, 1]]  # of two as near, the first


def batch(teacher, student, padding=2):
    """Two examples of the same spans, the second behind padding on both sides."""
    pairs = torch.cat([torch.tensor(align(teacher, student)), torch.zeros(3, 4)]).expand(2, -1, -1)
    size = len(teacher) + padding, len(student) + padding
    mask = torch.arange(size[0]) < len(teacher)
    return {
        "input_ids": torch.zeros(2, size[1], dtype=torch.long),
        "teacher_input_ids": torch.zeros(2, size[0], dtype=torch.long),
        "teacher_attention_mask": mask.long().expand(2, -1),
        ALIGNMENT: pairs[..., :2].long(),
        WEIGHTS: pairs[..., 2:],
    }


def test_batches_are_aligned_by_these_weights():
    teacher, student = [(-1, -1), (0, 4), (5, 9)], [(-1, -1), (0, 1), (1, 6), (6, 9)]
    features, moved = weights(teacher, student)
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    (aligned,) = align_features([x], batch(teacher, student))
    torch.testing.assert_close(aligned[:, :3], features @ x[:, :4])
    assert not aligned[:, 3:].any()
    logits = torch.cat([x[:, :4, 0], torch.full((2, 2), -1e4)], 1)
    for head, edges in (
        ("start_logits", [1, 2]),
        ("end_logits", [2, 3]),
    ):  # of the student's tokens, for each teacher's
        made = align_spans({head: logits}, batch(teacher, student), -1e4)[head]
        expected = torch.zeros(2, 3)
        for example, probabilities in enumerate(logits[:, :4].softmax(1)):
            for t, s in enumerate(edges, 1):
                expected[example, t] = moved[t, s] * probabilities[s]
            expected[example, 0] = 1 - expected[example].sum()  # also a start, or an end, inside of a token
        torch.testing.assert_close(made[:, :3].exp(), expected)
        assert (made[:, 3:] == -1e4).all()


def test_a_span_starts_with_the_first_piece_of_a_word_and_ends_with_the_last():
    teacher, student = [(-1, -1), (0, 9), (10, 12)], [(-1, -1), (0, 3), (3, 6), (6, 9), (10, 12)]
    for head, right, wrong in (("start_logits", 1, (2, 3)), ("end_logits", 3, (1, 2))):
        for piece in (right, *wrong):
            logits = torch.full((2, 7), -1e4)
            logits[:, piece] = 10.0
            made = align_spans({head: logits}, batch(teacher, student), -1e4)[head].exp()
            assert made[0].tolist() == pytest.approx([float(piece != right), float(piece == right), 0, 0, 0], abs=1e-6)


def test_a_blank_of_the_student_alone_takes_no_words_start_or_end():
    teacher, student = [(-1, -1), (0, 3), (4, 6), (-2, -2)], [(-1, -1), (0, 3), (3, 4), (4, 6), (-2, -2)]
    for head in ("start_logits", "end_logits"):
        for piece, token in ((1, 1), (2, 0), (3, 2), (4, 3)):
            logits = torch.full((2, 7), -1e4)
            logits[:, piece] = 10.0
            made = align_spans({head: logits}, batch(teacher, student), -1e4)[head].exp()
            assert made[0].argmax() == token and made[0].max() == pytest.approx(1)


def test_a_blank_that_the_teacher_counts_to_its_word_is_no_first_piece_of_it():
    """As DeBERTa-v3 counts it."""
    ids, text = [None, 0, 0, None], ["by Kobe"]
    teacher = text_spans([(0, 0), (0, 2), (2, 7), (0, 0)], ids, [0], text)
    student = text_spans([(0, 0), (0, 2), (2, 3), (3, 5), (5, 7), (0, 0)], [None, 0, 0, 0, 0, None], [0], text)
    logits = torch.full((2, 8), -1e4)
    logits[:, 3] = 10.0  # the start that labels mean
    made = align_spans({"start_logits": logits}, batch(teacher, student), -1e4)["start_logits"].exp()
    assert made[0].tolist() == pytest.approx([0, 0, 1, 0, 0, 0], abs=1e-6)


def test_answers_that_a_student_thinks_impossible_keep_their_gradient():
    """One tokenizer taken for two: as without an alignment."""
    own = [(-1, -1), *((i, i + 1) for i in range(9)), (-2, -2)]
    made = batch(own, own, padding=0)
    logits = torch.full((2, 11), -90.0)  # whose probability is 0 in fp32
    logits[:, 3] = 90.0
    grads = []
    for aligned in (False, True):
        x = logits.clone().requires_grad_()
        found = align_spans({"start_logits": x}, made, -1e4)["start_logits"] if aligned else x
        (found / 8).log_softmax(1)[:, 5].sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("kinds", [("wordpiece", "bytes"), ("bytes", "unigram"), ("unigram", "wordpiece")])
def test_spans_lose_no_probability(kinds):
    for text in CORPUS:
        teacher, student = (spans(kind, (text,)) for kind in kinds)
        logits = torch.randn(2, len(student) + 2, generator=torch.Generator().manual_seed(0))
        logits[:, len(student) :] = -1e4
        made = align_spans({"start_logits": logits, "end_logits": logits}, batch(teacher, student), -1e4)
        for values in made.values():
            assert values.exp().sum(1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_token_without_probability_has_a_finite_logarithm():
    teacher, student = [(0, 2), (2, 4), (4, 6)], [(0, 2), (4, 6)]
    made = align_spans({"start_logits": torch.zeros(2, 4)}, batch(teacher, student), -1e4)["start_logits"]
    assert made.isfinite().all() and made[0, 1] < -20
