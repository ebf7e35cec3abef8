"""Which student is trained next, and which is chosen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itrd_nlp.experiments.shrink.search import Goal, Trial, choose, frontier, meets, next_student
from itrd_nlp.utils.errors import UserError


def search(final, goal, early=None):
    """Train as the search does; returns the choice, and the students that were trained to the end."""
    early = early or {name: 0.5 + mib / 1000 for name, (mib, _) in final.items()}
    trials = {name: Trial(mib, 1 / mib, early[name]) for name, (mib, _) in final.items()}
    names, trained = frontier(trials), []
    while name := next_student(names, trials, goal):
        assert name not in trained
        trained.append(name)
        trials[name] = trials[name]._replace(kept=final[name][1])
    return choose(trials, goal), trained


@given(st.lists(st.floats(0.5, 1.0), min_size=1, max_size=30, unique=True), st.floats(0.4, 1.0))
def test_the_smallest_that_keeps_enough_is_found_with_few_trainings(kept, keep):
    """Where larger students keep more, halving finds what training all of them would."""
    final = {f"s{i}": (float(i + 1), share) for i, share in enumerate(sorted(kept))}
    (chosen, met), trained = search(final, Goal(keep))
    enough = [name for name, (_, share) in final.items() if share >= keep]
    assert met == bool(enough)
    assert chosen == (enough[0] if enough else [*final][-1])
    assert len(trained) <= math.ceil(math.log2(len(final) + 1)) + 1


def test_a_student_that_a_smaller_one_beats_is_not_trained_to_the_end():
    trials = {"a": Trial(5, 9, 0.8), "b": Trial(6, 8, 0.7), "c": Trial(6, 7, 0.9), "d": Trial(9, 2, 0.9)}
    assert frontier(trials) == ["a", "c"]
    assert frontier({"a": Trial(5, 9)}) == []  # not trained at all


def test_a_short_training_that_is_enough_makes_larger_students_needless():
    trials = {"a": Trial(1, 9, 0.6), "b": Trial(2, 8, 0.96), "c": Trial(3, 7, 0.97), "d": Trial(4, 6, 0.98)}
    names = frontier(trials)
    goal = Goal(0.95)
    assert next_student(names, trials, goal) == "b"
    trials["b"] = trials["b"]._replace(kept=0.97)
    assert next_student(names, trials, goal) == "a"
    trials["a"] = trials["a"]._replace(kept=0.7)
    assert next_student(names, trials, goal) is None
    assert choose(trials, goal) == ("b", True)


def test_where_the_short_training_was_enough_and_the_whole_one_was_not_larger_students_are_tried():
    trials = {"a": Trial(1, 9, 0.96), "b": Trial(2, 8, 0.97), "c": Trial(3, 7, 0.98)}
    names, goal = frontier(trials), Goal(0.95)
    assert next_student(names, trials, goal) == "a"
    trials["a"] = trials["a"]._replace(kept=0.94)  # int8 took some
    assert next_student(names, trials, goal) == "b"


def test_limits_hold_for_the_deployed_student_too():
    goal = Goal(0.9, max_mib=10, min_speedup=4)
    assert meets(Trial(9, 5, 0.8, 0.95), goal)
    assert not meets(Trial(11, 5, 0.8, 0.95), goal)
    assert not meets(Trial(9, 3, 0.8, 0.95), goal)
    assert not meets(Trial(9, 5, 0.99), goal)  # not trained to the end


def test_without_one_that_meets_the_goal_the_nearest_is_chosen():
    trials = {
        "a": Trial(5, 9, 0.5, 0.7),
        "b": Trial(8, 8, 0.6, 0.8),
        "c": Trial(12, 7, 0.7, 0.9),
        "d": Trial(20, 5, 0.8),
    }
    assert choose(trials, Goal(0.95)) == ("c", False)
    assert choose(trials, Goal(0.95, max_mib=10)) == ("b", False)


@pytest.mark.parametrize(
    "goal", [Goal(1.2), Goal(0.0), Goal(-1), Goal(math.nan), Goal(max_mib=0), Goal(min_speedup=-2)]
)
def test_goals_out_of_range_are_refused(goal):
    with pytest.raises(UserError, match=r"^--(keep|max_mib|min_speedup) \S+: expected "):
        goal.check()
