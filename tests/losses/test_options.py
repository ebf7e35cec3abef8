"""The options of a loss of one's own, however its class annotates them."""

import pytest

from itrd_nlp.losses import LOSSES, Shapes, build_losses
from itrd_nlp.utils.errors import UserError

SOURCE = """
from typing import Literal, Optional

from itrd_nlp.losses import DistillationLoss, Shapes


class OwnLoss(DistillationLoss):
    def __init__(
        self,
        shapes: Shapes,
        *,
        scale: float = 1.0,
        count: int = 1,
        name: str = "",
        on: bool = False,
        limit: float | None = None,
        steps: Optional[int] = None,
        either: int | str = 0,
        layers: list[int] = (),
        layers_or_none: list[int] | None = None,
        kind: Literal["a", "b"] = "a",
        anything=None,
    ):
        super().__init__()

    def terms(self, student, teacher, batch):
        return {}
"""
POSTPONED = "from __future__ import annotations\n"
SHAPES = Shapes((), (), ())


def own_loss(source, monkeypatch):
    names = {"__name__": "own"}
    exec(source, names)
    monkeypatch.setitem(LOSSES, "own", names["OwnLoss"])


@pytest.fixture(params=["", POSTPONED], ids=["evaluated", "postponed"])
def own(request, monkeypatch):
    own_loss(request.param + SOURCE, monkeypatch)


RIGHT = {
    "scale": [2.5, 2],
    "count": [3],
    "name": ["x"],
    "on": [True],
    "limit": [None, 2, 2.5],
    "steps": [None, 2],
    "either": [3, "x"],
    "layers": [[1, 2]],
    "layers_or_none": [None, [1]],
    "kind": ["b"],
    "anything": [1, "x", [None]],
}
WRONG = {
    "scale": (["x", True, None, [1.0]], "float"),
    "count": ([2.0, True, None, "1"], "int"),
    "name": ([3, None], "str"),
    "on": ([1, "yes"], "bool"),
    "limit": (["x", True], "float or None"),
    "steps": ([2.5, False], "int or None"),
    "either": ([2.5, True, None], "int or str"),
}


@pytest.mark.parametrize("key,value", [(key, value) for key, values in RIGHT.items() for value in values])
def test_a_value_of_the_annotated_type_is_taken(own, key, value):
    assert "own" in build_losses({"own": {key: value}}, SHAPES)


@pytest.mark.parametrize("key,value,kind", [(key, x, kind) for key, (values, kind) in WRONG.items() for x in values])
def test_a_value_of_another_type_is_one_line(own, key, value, kind):
    with pytest.raises(UserError, match=f"^loss 'own' with {key} .*: a value of the wrong type, expected {kind}$"):
        build_losses({"own": {key: value}}, SHAPES)


def test_annotations_for_type_checkers_alone_check_nothing(monkeypatch):
    own_loss(POSTPONED + SOURCE.replace("shapes: Shapes", "shapes: Unknown"), monkeypatch)
    assert "own" in build_losses({"own": {"scale": 2}}, SHAPES)
