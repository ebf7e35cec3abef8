"""Layer maps."""

import pytest

from itrd_nlp.distillation.layers import layer_pairs
from itrd_nlp.utils.errors import UserError


@pytest.mark.parametrize(
    "spec,teacher,student,pairs",
    [
        ("last", 12, 3, [[12, 3]]),
        ("even", 12, 6, [[2, 1], [4, 2], [6, 3], [8, 4], [10, 5], [12, 6]]),
        ("even", 12, 3, [[4, 1], [8, 2], [12, 3]]),
        ("even", 6, 4, [[2, 1], [3, 2], [4, 3], [6, 4]]),
        ("even", 2, 4, [[1, 1], [1, 2], [2, 3], [2, 4]]),
        ([[0, 0], [5, 2]], 6, 2, [[0, 0], [5, 2]]),
    ],
)
def test_layer_maps(spec, teacher, student, pairs):
    assert layer_pairs(spec, teacher, student) == pairs


@pytest.mark.parametrize("spec", ["first", [], [[1]], [[13, 1]], [[1, 4]], [["a", 1]], [[1, -1]], [[True, 1]], ["12"]])
def test_wrong_layer_maps_are_one_line(spec):
    with pytest.raises(UserError, match="layer_map") as error:
        layer_pairs(spec, 12, 3)
    assert "\n" not in str(error.value)
