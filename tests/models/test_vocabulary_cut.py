"""Fewer pieces: what stays readable, which vectors stay, and what is refused."""

import copy
import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    CanineConfig,
    CanineModel,
    DebertaV2Config,
    DebertaV2Tokenizer,
    ModernBertConfig,
    MPNetConfig,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaTokenizer,
)

from distillation.test_alignment import CORPUS, KINDS, TEXT, tokenizer
from itrd_nlp import student_from_teacher
from itrd_nlp.models.student_map import describe_map
from itrd_nlp.models.students import cut_student
from itrd_nlp.models.vocabulary_cut import CutVocabulary, count_pieces, cut_vocabulary, keep_pieces, least_pieces
from itrd_nlp.utils.errors import UserError
from itrd_nlp.utils.tokenizers import tokenizers_differ

TEXTS = [CORPUS[0], CORPUS[3], CORPUS[3]]
FAMILIES = ("bert", "mpnet", "roberta", "deberta", "modernbert")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 40,
}


def pieces_of(kind):
    """The model's vocabulary of a trained tokenizer without its special tokens, and its merges."""
    state = json.loads(tokenizer(kind).backend_tokenizer.to_str())
    special = {token["content"] for token in state["added_tokens"]}
    vocabulary = state["model"]["vocab"]
    if isinstance(vocabulary, list):
        return [(piece, score) for piece, score in vocabulary if piece not in special], None
    return [p for p in sorted(vocabulary, key=vocabulary.get) if p not in special], state["model"].get("merges")


def numbered(pieces):
    return {piece: i for i, piece in enumerate(pieces)}


@functools.cache
def family(name):
    """The tokenizer of an architecture, laid out as its checkpoints are, with few pieces."""
    if name == "bert":
        special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return BertTokenizer(vocab=numbered([*special, *pieces_of("wordpiece")[0]]))
    if name == "mpnet":  # BERT's own special tokens are ordinary pieces of it
        stray = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        return MPNetTokenizer(
            vocab=numbered(["<s>", "<pad>", "</s>", "<unk>", *stray, *pieces_of("wordpiece")[0], "<mask>"])
        )
    if name == "roberta":
        pieces, merges = pieces_of("bytes")
        vocabulary = numbered(["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"])
        return RobertaTokenizer(vocab=vocabulary, merges=[tuple(merge) for merge in merges])
    if name == "deberta":
        special = [(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
        return DebertaV2Tokenizer(vocab=[*special, *pieces_of("unigram")[0]])
    pieces, merges = pieces_of("bytes")
    made = Tokenizer(models.BPE(numbered(["|||IP|||", *pieces]), [tuple(merge) for merge in merges]))
    made.normalizer, made.pre_tokenizer = normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken("   ", normalized=True), AddedToken("|||IP|||", lstrip=True, normalized=False)])
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True)])
    ids = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ids)
    names = {f"{token}_token": f"[{token.upper()}]" for token in ("unk", "cls", "sep", "pad", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def model(name, **changes):
    own = family(name)
    ids = {f"{role}_token_id": getattr(own, f"{role}_token_id") for role in ("pad", "cls", "sep", "bos", "eos")}
    kinds = {
        "bert": BertConfig,
        "mpnet": MPNetConfig,
        "roberta": RobertaConfig,
        "deberta": DebertaV2Config,
        "modernbert": ModernBertConfig,
    }
    further = {"pos_att_type": ["c2p", "p2c"], "relative_attention": True} if name == "deberta" else {}
    rows = len(own) + (3 if name in ("deberta", "modernbert") else 0)  # their tables have spare rows
    config = kinds[name](
        vocab_size=rows, **SIZES, **{k: v for k, v in ids.items() if v is not None}, **further, **changes
    )
    torch.manual_seed(0)
    made = AutoModelForMaskedLM.from_config(config).eval()
    for weight in made.parameters():  # biases of zeros and padding would hide a wrong order
        torch.nn.init.normal_(weight.data, std=0.1)
    return made


@functools.cache
def least(own):
    """The least size that a tokenizer takes, as its error says."""
    with pytest.raises(UserError, match=r"vocabulary 1: expected \d+ or more") as error:
        cut_vocabulary(own, TEXTS, 1)
    return int(str(error.value).split()[3])


@functools.cache
def half(name):
    """A tokenizer cut to halfway between the least and all pieces."""
    own = tokenizer(name) if name in KINDS else family(name)
    return own, cut_vocabulary(own, TEXTS, (least(own) + len(own)) // 2)


def unknown(own, text):
    """How many tokens a text has at all, none or more, and the characters that are unknown."""
    tokens = own(text, return_offsets_mapping=True, add_special_tokens=False)
    pairs = zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
    return tokens["input_ids"] != [], {i for token, span in pairs if token == own.unk_token_id for i in range(*span)}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT, name=st.sampled_from([*KINDS, *FAMILIES]))
def test_no_text_becomes_unknown_and_a_text_whose_pieces_stay_is_cut_as_before(text, name):
    own, cut = half(name)
    assert unknown(cut.tokenizer, text) == unknown(own, text)
    before, after = own(text, text)["input_ids"], cut.tokenizer(text, text)["input_ids"]
    if {*before} <= {*cut.kept_ids}:
        assert [cut.kept_ids[i] for i in after] == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT, kind=st.sampled_from(KINDS), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_whatever_the_counts_and_the_size(text, kind, share, seed):
    own = tokenizer(kind)
    counts = np.random.default_rng(seed).integers(0, 5, len(own))
    smallest = least(own)
    cut = keep_pieces(own, counts, smallest + int(share * (len(own) - smallest)))
    assert unknown(cut.tokenizer, text) == unknown(own, text)


@pytest.mark.parametrize("name", [*KINDS, *FAMILIES])
def test_the_saved_tokenizer_is_the_same(name, tmp_path):
    _, cut = half(name)
    cut.tokenizer.save_pretrained(tmp_path)
    assert tokenizers_differ(cut.tokenizer, AutoTokenizer.from_pretrained(tmp_path)) is None
    assert not list(tmp_path.glob("*.txt")) and not list(tmp_path.glob("*.model"))  # of the old vocabulary


@pytest.mark.parametrize("name", [*KINDS, *FAMILIES])
def test_added_tokens_keep_their_flags_and_special_tokens_their_names(name):
    own, cut = half(name)
    flags = [
        {str(token): token.__getstate__() for token in each.added_tokens_decoder.values()}
        for each in (own, cut.tokenizer)
    ]
    assert flags[0] == flags[1] and own.special_tokens_map == cut.tokenizer.special_tokens_map
    assert cut.tokenizer.model_max_length == own.model_max_length
    if name in ("bert", "mpnet", "roberta", "deberta"):
        assert cut.tokenizer.pad_token_id == own.pad_token_id  # at the start of the vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_frequent_pieces_stay(kind):
    own = tokenizer(kind)
    counts, cut = count_pieces(own, TEXTS), half(kind)[1]
    gone = [i for i in range(len(own)) if i not in cut.kept_ids]
    smallest = set(cut_vocabulary(own, TEXTS, least(own)).kept_ids)
    further = [i for i in cut.kept_ids if i not in smallest]
    assert gone and further and cut.kept_ids == sorted(cut.kept_ids)
    if kind != "bytes":  # whose pieces also count as parts of others
        assert min(counts[further]) >= max(counts[gone]) and min(counts[further]) > 0
    ids = [i for text in TEXTS for i in own(text, add_special_tokens=False)["input_ids"]]
    assert counts.tolist() == [ids.count(i) for i in range(len(own))]


@pytest.mark.parametrize("name", ["bytes", "roberta", "modernbert"])
def test_each_piece_of_bpe_is_reached_by_merges(name):
    own, cut = half(name)
    state = json.loads(cut.tokenizer.backend_tokenizer.to_str())["model"]
    reached = {piece for piece in state["vocab"] if len(piece) == 1}
    for _ in range(20):
        reached |= {a + b for a, b in state["merges"] if {a, b} <= reached}
    names = {str(token) for token in cut.tokenizer.added_tokens_decoder.values()}
    assert reached == state["vocab"].keys() - names
    for piece in reached:
        assert [token.value for token in cut.tokenizer.backend_tokenizer.model.tokenize(piece)] == [piece]
    old = json.loads(own.backend_tokenizer.to_str())["model"]["merges"]
    assert state["merges"] == [pair for pair in old if {*pair, "".join(pair)} <= state["vocab"].keys()]


def test_a_part_that_never_occurs_alone_stays_with_its_whole():
    made = Tokenizer(
        models.BPE(numbered(["d", "c", "b", "a", "cd", "abcd", "ab"]), [("a", "b"), ("c", "d"), ("ab", "cd")])
    )
    own = PreTrainedTokenizerFast(tokenizer_object=made)
    assert cut_vocabulary(own, ["abcd"], 7).tokenizer is own
    assert cut_vocabulary(own, ["abcd"], 6).tokenizer.tokenize("abcd") == ["ab", "cd"]  # parts before their whole
    assert cut_vocabulary(own, ["abcd", "cd"], 5).tokenizer.tokenize("abcd") == ["a", "b", "cd"]


def hand_made(pieces, kind=models.WordPiece, normalizer=None):
    made = Tokenizer(kind(numbered(["[UNK]", *pieces]), unk_token="[UNK]"))
    made.pre_tokenizer, made.normalizer = pre_tokenizers.Whitespace(), normalizer
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def test_a_piece_that_no_characters_spell_stays_and_with_it_all_that_could_cut_it():
    # "##y" is missing: "##by" reads it alone, unless "##ab" took the b
    own = hand_made(["a", "##a", "b", "##b", "c", "##c", "xab", "x", "##x", "##by", "##ab", "cc", "##bb"])
    cut = cut_vocabulary(own, ["a b c"], 13)
    assert cut.tokenizer.tokenize("xaby xab cby cc") == own.tokenize("xaby xab cby cc")[:4] + ["c", "##c"]
    with pytest.raises(UserError, match="vocabulary 12: expected 13 or more"):
        cut_vocabulary(own, ["a b c"], 12)


def test_a_piece_that_no_text_can_hold_is_no_reason_to_keep_others():
    pieces = ["[", "##[", "]", "p", "##p", "ap", "a", "##a", "[PAD]", "PA"]
    own = hand_made(pieces, normalizer=normalizers.Lowercase())
    assert len(cut_vocabulary(own, ["a"], 8).kept_ids) == 8  # "[UNK]" and single characters


def test_the_unknown_token_of_a_unigram_keeps_its_number():
    """RemBERT's class has it built in."""
    scores = {"[PAD]": 0.0, "xyz": -3.0, "[UNK]": 0.0, **dict.fromkeys("axyz", -2.0), "aa": -1.5}
    own = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([*scores.items()], 2)), unk_token="[UNK]")
    cut = cut_vocabulary(own, ["aa"], 7)
    assert cut.tokenizer.unk_token_id == 2 and cut.tokenizer.tokenize("xyzaa?")[-1] == "?"


def test_byte_fallback_stays():
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    made = Tokenizer(models.Unigram([("[UNK]", 0.0), *[(b, 0.0) for b in bytes_], ("a", -2.0), ("aa", -1.5)], 0, True))
    own = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    cut = cut_vocabulary(own, ["b"], 258)
    assert cut.tokenizer.tokenize("aaé") == ["a", "a", "<0xC3>", "<0xA9>"]


def test_order_and_repetition_of_texts_and_added_truncation_change_nothing(monkeypatch):
    own = copy.deepcopy(tokenizer("wordpiece"))
    own.backend_tokenizer.enable_truncation(4)
    own.backend_tokenizer.enable_padding(length=16)
    expected = count_pieces(tokenizer("wordpiece"), TEXTS)
    assert count_pieces(own, reversed(TEXTS)).tolist() == expected.tolist()
    assert own.backend_tokenizer.truncation["max_length"] == 4  # the tokenizer itself is as it was
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert count_pieces(own, iter(TEXTS)).tolist() == expected.tolist()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_student_with_fewer_pieces_computes_the_same(name, tied):
    own, cut = half(name)
    source = model(name, tie_word_embeddings=tied)
    student, student_map = cut_student(source, "first:2", vocabulary=cut)
    before, after = source.state_dict(), student.state_dict()
    table = source.get_input_embeddings().weight
    assert torch.equal(student.get_input_embeddings().weight, table[cut.kept_ids])
    assert before.keys() == after.keys()
    for key, weight in after.items():
        old = before[key] if before[key].shape == weight.shape else before[key][cut.kept_ids]
        assert torch.equal(weight, old), key
    text = "the engine"
    assert {*own(text)["input_ids"]} <= {*cut.kept_ids}
    batches = [each([text, text + " the"], padding=True, return_tensors="pt") for each in (own, cut.tokenizer)]
    with torch.no_grad():
        logits = [each(**batch).logits for each, batch in zip((source, student), batches, strict=True)]
    real = batches[0]["attention_mask"].bool()
    assert torch.equal(logits[0][real][:, cut.kept_ids], logits[1][real])
    assert student.config.vocab_size == len(cut.kept_ids) and student.config.pad_token_id == cut.tokenizer.pad_token_id
    for role in ("cls", "sep", "bos", "eos"):
        old = getattr(source.config, f"{role}_token_id", None)
        if old in cut.kept_ids:
            assert cut.kept_ids[getattr(student.config, f"{role}_token_id")] == old
    assert f"vocabulary: {len(own):,} -> {len(cut.kept_ids):,} pieces" in describe_map(student_map)
    assert source.config.vocab_size == len(table)


def test_as_many_pieces_as_there_are_change_nothing():
    own = family("deberta")
    cut = cut_vocabulary(own, TEXTS, len(own))
    assert cut.tokenizer is own and cut.kept_ids == list(range(len(own)))
    source = model("deberta")
    same, plain = (cut_student(source, "first:1", vocabulary=v)[0] for v in (cut, None))
    assert same.config.to_dict() == plain.config.to_dict()
    assert all(torch.equal(w, plain.state_dict()[name]) for name, w in same.state_dict().items())


def test_fewer_pieces_go_with_other_options_of_a_student(capsys):
    cut = half("bert")[1]
    student = student_from_teacher(
        model("bert"), [1], vocabulary=cut, init="random", intermediate_size=8, hidden_dropout_prob=0.0
    )
    assert student.config.num_hidden_layers == 1 and student.config.vocab_size == len(cut.kept_ids)
    assert "vocabulary:" in capsys.readouterr().out


def test_pieces_layers_and_units_are_cut_together():
    own, cut = half("bert")
    source = model("bert").eval()
    inputs = own(["the king of the city", "where is the river"], padding=True, return_tensors="pt")
    batches = [dict(inputs)]
    sizes = {"hidden_size": source.config.hidden_size // 2, "calibration": batches}
    student, made = cut_student(source, "best:1", vocabulary=cut, **sizes)
    assert (student.config.num_hidden_layers, student.config.vocab_size) == (1, len(cut.kept_ids))
    narrow, _ = cut_student(source, made.layers, **sizes)  # the same without the cut of the vocabulary
    rows = narrow.get_input_embeddings().weight[cut.kept_ids]
    assert torch.equal(student.get_input_embeddings().weight, rows)
    assert "hidden units" in made.units and made.comparison and made.vocabulary is not None


def words():
    made = Tokenizer(models.WordLevel(numbered(["[UNK]", "a", "b"]), "[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cut_vocabulary(words(), TEXTS, 2), "whose kind is WordLevel: expected a fast one of WordPiece"),
        (
            lambda: cut_vocabulary(SimpleNamespace(is_fast=False), TEXTS, 2),
            "SimpleNamespace, a slow tokenizer: expected a fast",
        ),
        (lambda: cut_vocabulary(tokenizer("bytes"), [], 300), "no texts to count pieces in: expected at least one"),
        (lambda: cut_vocabulary(tokenizer("bytes"), ["", ""], 300), "no texts to count pieces in"),
        (lambda: cut_vocabulary(tokenizer("bytes"), ["a", None], 300), "expected whole characters, .* found None"),
        (lambda: cut_vocabulary(tokenizer("bytes"), ["a\ud800"], 300), r"whole characters, .* found 'a\\ud800'"),
        (
            lambda: cut_vocabulary(tokenizer("bytes"), TEXTS, "8k"),
            "vocabulary '8k': expected the number of tokens to keep",
        ),
        (lambda: cut_vocabulary(tokenizer("bytes"), TEXTS, True), "vocabulary True: expected the number"),
        (
            lambda: cut_student(model("bert"), [0], vocabulary=8000),
            r"expected the result of cut_vocabulary\(tokenizer, te",
        ),
        (lambda: cut_student(model("bert"), "first:1", vocabulary=half("roberta")[1]), "table of 162 rows: expected"),
        (
            lambda: cut_student(model("bert"), "first:1", vocabulary=half("bert")[1], vocab_size=9),
            "vocab_size=9 with vocabulary, which decides it: leave either out",
        ),
        (lambda: cut_student(model("bert"), "first:1", vocabulry=9), "did you mean 'vocabulary'"),
        (
            lambda: cut_student(CanineModel(CanineConfig(**SIZES)), "first:1", vocabulary=half("bert")[1]),
            "CanineModel has no table of pieces: expected the model of the tokenizer",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_padding_id_that_would_move_positions_is_refused():
    own, cut = half("roberta")
    moved = CutVocabulary(cut.tokenizer, cut.kept_ids, len(own))
    source = model("roberta")
    source.config.pad_token_id = source.base_model.embeddings.padding_idx = own.mask_token_id
    with pytest.raises(UserError, match="counts positions from its padding id, which would change from"):
        cut_student(source, "first:1", vocabulary=moved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_vocabulary_can_be_cut_and_a_smaller_one_cannot(kind):
    own, texts = tokenizer(kind), ["the king of the city"]
    least = least_pieces(own)
    assert len(cut_vocabulary(own, texts, least).kept_ids) == least
    with pytest.raises(UserError, match=f"expected {least} or more"):
        cut_vocabulary(own, texts, least - 1)
