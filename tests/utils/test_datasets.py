"""What is known of training data before it is read."""

import pytest
from datasets import Dataset

from itrd_nlp.utils.datasets import numbering


@pytest.mark.parametrize("name", ["labels", "label"])
def test_classes_are_known_under_either_name_of_the_labels(name):
    known = numbering(Dataset.from_dict({"input_ids": [[1], [2], [3]], name: [2, 0, 1]}))
    assert known["examples"] == 3 and known["labels"].tolist() == [2, 0, 1]


@pytest.mark.parametrize("labels", [[0.5, 1.0], [0, None], [-1, 1]], ids=str)
def test_labels_that_are_no_classes_are_left_out(labels):
    assert numbering(Dataset.from_dict({"labels": labels})) == {"examples": 2}


def test_streams_have_no_numbers():
    assert numbering(iter([])) == {}
