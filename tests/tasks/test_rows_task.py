"""What tasks of rows keep of each example, whatever the tokenizer."""

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import EvalPrediction, PreTrainedTokenizerFast

from itrd_nlp.tasks.rows import Rows
from itrd_nlp.tasks.text_classification import ClassificationTask, MultilabelTask, RegressionTask
from itrd_nlp.tasks.token_classification import TaggingTask
from itrd_nlp.utils.errors import UserError

TEXTS = ["where house", "of the in", "is in"]  # the longest by characters has fewer pieces than another


@pytest.fixture
def characters():
    """A tokenizer whose pieces are single characters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = [*special, *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)


def outputs(task, wrong):
    """Outputs that are right for every example but one, in the order of the task's evaluation data."""
    labels = task.eval_dataset["labels"]
    right = [index != wrong for index in task.order]
    if task.name == "tagging":
        made = np.zeros((len(labels), 64, len(task.class_names)))
        for row, is_right, tags in zip(made, right, labels, strict=True):
            for token, tag in enumerate(tags):
                row[token, (tag + (not is_right)) % row.shape[1]] = 1
        return EvalPrediction(made, None)
    values = np.array(labels[:], dtype=float)
    if task.name == "multilabel":
        return EvalPrediction(np.where(np.array(right)[:, None], values, 1 - values) - 0.5, values)
    if task.name == "regression":
        return EvalPrediction(values[:, None] + ~np.array(right)[:, None], values)
    logits = np.eye(len(task.class_names))[[int(x + (not ok)) % 3 for x, ok in zip(values, right, strict=True)]]
    return EvalPrediction(logits, values.astype(int))


@pytest.mark.parametrize(
    "kind,labels",
    [
        (ClassificationTask, ["x", "y", "z"]),
        (MultilabelTask, ["x|y", "y", "z"]),
        (RegressionTask, [1.0, 2.0, 4.0]),
        (TaggingTask, [["B-A", "O"], ["O", "O", "B-B"], ["O", "B-B"]]),
    ],
)
def test_scores_of_examples_stand_in_the_order_of_the_file(tokenizer, characters, kind, labels):
    texts = [text.split() for text in TEXTS] if kind is TaggingTask else TEXTS
    rows = Rows("a.csv", [texts], labels)
    some, others = kind(tokenizer, rows, rows), kind(characters, rows, rows)
    assert some.eval_dataset is not None and others.eval_dataset is not None
    assert some.order.tolist() != others.order.tolist() and some.scoring() == others.scoring()
    for wrong in range(3):
        (first,), (second,) = (task.score(outputs(task, wrong))[1].values() for task in (some, others))
        assert first == second
        (right,) = some.score(outputs(some, None))[1].values()
        assert [i for i in range(3) if right[i] != first[i]] == [wrong]


def test_other_rows_are_other_examples(tokenizer):
    rows = Rows("a.csv", [TEXTS], ["x", "y", "z"])
    others = [rows._replace(labels=["x", "z", "y"]), Rows("a.csv", [TEXTS[::-1]], ["x", "y", "z"])]
    digests = [ClassificationTask(tokenizer, rows, made).scoring() for made in (rows, *others)]
    assert digests[0] not in digests[1:]


def test_pairs_to_learn_from_and_single_texts_to_score_are_refused(characters):
    """As where a column of one file has another name."""
    pairs, single = Rows("train.csv", [TEXTS, TEXTS], ["a", "b", "a"]), Rows("dev.csv", [TEXTS], ["a", "b", "a"])
    for train, validation in ((pairs, single), (single, pairs)):
        with pytest.raises(UserError, match=f"'{train.source}' has .* '{validation.source}' has .*: expected the same"):
            ClassificationTask(characters, train, validation)
