"""What names a run: digests of data, weights and values."""

import torch
from datasets import concatenate_datasets

import tiny
from itrd_nlp.plan import data_digest, weights_digest


def test_rows_have_one_digest_however_they_were_put_together():
    rows = tiny.rows(30)
    parts = concatenate_datasets([rows.select(range(7)), rows.select(range(7, 30))])
    shuffled = rows.select([1, 0, *range(2, 30)])
    assert data_digest(parts) == data_digest(rows) == data_digest(rows.flatten_indices())
    assert len({data_digest(x) for x in (rows, shuffled, rows.select(range(29)), rows.remove_columns("length"))}) == 4


def test_weights_have_one_digest_and_any_change_another():
    model = tiny.bert()
    first = weights_digest(model)
    assert first == weights_digest(tiny.bert()) != weights_digest(tiny.bert(seed=1))
    with torch.no_grad():
        model.qa_outputs.bias[0] += 1e-7
    assert weights_digest(model) != first
