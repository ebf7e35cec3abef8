"""Fixtures of the tests of tasks."""

import pytest
from transformers import BertModel

import tiny


@pytest.fixture
def bare(tmp_path, tokenizer):
    """A folder of an encoder without a head."""
    folder = str(tmp_path / "bare")
    BertModel(tiny.config(vocab_size=len(tokenizer), max_position_embeddings=512)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
