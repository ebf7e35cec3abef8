"""What a search says of its choice."""

import pytest

from itrd_nlp.experiments.shrink.report import verdict

SIZES = {"parameters": 100, "ms": 2.0, "speedup": 9.0, "form": "int8", "note": ""}


def record(**changes):
    """A search that chose the smaller of two students, which keeps 98 % of 97 %."""
    chosen = {**SIZES, "name": "l2", "mib": 5.0, "score": 88.2, "kept": 0.98, "kept_low": 0.975, "early": 80.0}
    other = {**SIZES, "name": "l1", "mib": 4.0, "score": None, "kept": None, "kept_low": None, "early": 40.0}
    goal = {"keep": 0.97, "max_mib": None, "min_speedup": None}
    made = {"chosen": "l2", "met": True, "goal": goal, "metric": "accuracy", "teacher": {"score": 90.0}, "test": None}
    return made | {"candidates": [chosen, other], "baseline": 80.0, "baseline_teacher": 90.0} | changes


CAUTIONS = ("interval reaches below the goal", "No smaller student was tried", "distillation gained nothing")


def said(made):
    return [caution in verdict(made) for caution in CAUTIONS]


def test_a_choice_without_doubts_needs_no_caution():
    assert verdict(record()).startswith(
        "l2 is the smallest student tried that meets the goal (97 % of the teacher's acc"
    )
    assert said(record()) == [False, False, False]


def test_an_interval_that_reaches_below_the_goal_is_said():
    made = record()
    made["candidates"][0]["kept_low"] = 0.96
    assert said(made) == [True, False, False]


def test_a_search_that_ended_at_its_smallest_student_says_so():
    made = record()
    made["candidates"].pop()
    assert said(made) == [False, True, False]


@pytest.mark.parametrize(("baseline", "trained"), [(88.2, True), (88.1, True), (90.0, False)])
def test_labels_alone_that_do_as_well_are_said(baseline, trained):
    made = record(baseline=baseline, baseline_trained=trained)
    assert said(made) == [False, False, baseline >= 88.2 and trained]
    if said(made)[2]:
        assert "keeps 98.0 % in PyTorch" in verdict(made) and "runs/l2/whole/models.json" in verdict(made)


def test_a_goal_that_was_missed_needs_no_advice_on_smaller_students():
    made = record(met=False)
    made["candidates"].pop()
    made["candidates"][0]["kept_low"] = 0.9
    assert verdict(made).startswith("No student tried meets the goal") and said(made) == [False, False, False]
