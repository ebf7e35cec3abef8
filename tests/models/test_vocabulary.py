"""Embeddings of another vocabulary."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distillation.test_alignment import tokenizer
from itrd_nlp.models.vocabulary import Marks, Surface, _pieces, transfer_embeddings


def vectors(kind, width=6):
    return torch.randn(len(tokenizer(kind)), width, generator=torch.Generator().manual_seed(0))


def test_the_same_vocabulary_keeps_its_vectors():
    for kind in ("wordpiece", "bytes", "unigram"):
        old = vectors(kind)
        transfer = transfer_embeddings(old, tokenizer(kind), tokenizer(kind))
        assert torch.equal(transfer.vectors, old) and transfer.copied == len(old)


def test_a_piece_of_both_is_copied_and_another_is_the_mean_of_those_that_cover_it():
    source, target = tokenizer("wordpiece"), tokenizer("bytes")
    old = vectors("wordpiece")
    made = transfer_embeddings(old, source, target)
    new, ours = target.get_vocab(), source.get_vocab()
    assert torch.equal(made.vectors[new["Ġthe"]], old[ours["the"]])
    assert torch.equal(made.vectors[new["<s>"]], old[ours["[CLS]"]])
    assert torch.equal(made.vectors[new["</s>"]], old[ours["[SEP]"]])
    piece = next(p for p in new if p.startswith("Ġ") and p[1:].isalpha() and p[1:].islower() and p[1:] not in ours)
    covering = source(piece[1:], add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(made.vectors[new[piece]], old[covering].mean(0))
    assert made.copied and made.averaged and made.unknown  # a byte of a character is none of these
    assert made.copied + made.averaged + made.unknown == len(new)
    assert made.vectors.isfinite().all()


def test_a_continuation_is_not_the_beginning_of_a_word():
    source, target = tokenizer("wordpiece"), tokenizer("bytes")
    old, ours, new = vectors("wordpiece"), source.get_vocab(), target.get_vocab()
    made = transfer_embeddings(old, source, target).vectors
    both = [p for p in new if p.isascii() and p.isalpha() and {p, f"##{p}"} <= ours.keys()]
    for piece in both:  # without a blank before it, it continues a word
        assert torch.equal(made[new[piece]], old[ours[f"##{piece}"]])
    assert both


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_part_of_a_character_is_the_mean_of_all_and_not_a_letter(kind):
    source, target = tokenizer(kind), tokenizer("bytes")
    old = vectors(kind)
    made = transfer_embeddings(old, source, target).vectors
    for piece in ("Å", "Ñ", "é"):  # bytes of characters, which are written as letters
        torch.testing.assert_close(made[target.get_vocab()[piece]], old.mean(0))


def test_a_letter_is_not_the_byte_that_is_written_as_it():
    source, target = tokenizer("bytes"), tokenizer("unigram")
    old = vectors("bytes")
    letter = next(p for p in target.get_vocab() if len(p) == 1 and ord(p) > 127 and p in source.get_vocab())
    covering = source(letter, add_special_tokens=False)["input_ids"]
    made = transfer_embeddings(old, source, target).vectors
    torch.testing.assert_close(made[target.get_vocab()[letter]], old[covering].mean(0))


def test_a_piece_that_begins_a_word_is_covered_by_pieces_that_begin_one():
    source, target = tokenizer("bytes"), tokenizer("wordpiece")
    old = vectors("bytes")
    made = transfer_embeddings(old, source, target).vectors
    ours = source.get_vocab()
    word = next(p for p in target.get_vocab() if p.isalpha() and p.islower() and len(p) > 3 and f"Ġ{p}" not in ours)
    covering = source(f" {word}", add_special_tokens=False)["input_ids"]
    assert source.convert_ids_to_tokens(covering)[0].startswith("Ġ")
    torch.testing.assert_close(made[target.get_vocab()[word]], old[covering].mean(0))


def bpe(pieces, **options):
    """A BPE that knows these pieces, each letter its own."""
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], **options)
    backend = Tokenizer(model)
    return backend, lambda: PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_of_several_pieces_of_one_surface_the_plain_one_counts():
    backend, made = bpe(["[UNK]", "###", "#", "a", "Ġa"])  # of byte-level BPE, in which ## marks nothing
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    pieces = _pieces(made(), Marks.of(made()))
    assert pieces[Surface("#", False)] == 2 and pieces[Surface("###", False)] == 1
    backend, made = bpe(["[UNK]", "<0x2E>", "a", "."], byte_fallback=True)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert _pieces(made(), Marks.of(made()))[Surface(".", True)] == 3
    backend, made = bpe(["[UNK]", "do", "do</w>"], end_of_word_suffix="</w>")
    backend.decoder = decoders.BPEDecoder()
    assert Marks.of(made()).end == "</w>" and _pieces(made(), Marks.of(made()))[Surface("do", True)] == 2


def test_a_letter_that_looks_like_a_mark_is_none():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "Ġunju": 1, "in": 2, "##in": 3}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert Marks.of(made) == Marks("", "##", "")
    assert _pieces(made, Marks.of(made))[Surface("in", True)] == 2


def test_a_continuation_is_covered_by_continuations():
    source, target = tokenizer("wordpiece"), tokenizer("bytes")
    old, ids = vectors("wordpiece"), source.get_vocab()
    made = transfer_embeddings(old, source, target).vectors
    inner = [piece for piece in target.get_vocab() if piece.isalpha() and piece.isascii() and len(piece) > 2]
    piece = next(p for p in inner if f"##{p}" not in ids and source.unk_token_id not in source(f"a{p}")["input_ids"])
    covering = source.convert_ids_to_tokens(source(f"a{piece}", add_special_tokens=False)["input_ids"])[1:]
    assert all(each.startswith("##") for each in covering)
    torch.testing.assert_close(made[target.get_vocab()[piece]], old[[ids[each] for each in covering]].mean(0))
