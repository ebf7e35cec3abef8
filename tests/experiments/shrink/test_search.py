"""The students that a search tries, which of them is trained next, and which is chosen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, CanineConfig, DistilBertConfig, FNetConfig

import tiny
from itrd_nlp.experiments.shrink.search import (
    Candidate,
    Goal,
    Trial,
    choose,
    frontier,
    ladder,
    meets,
    next_student,
    reason,
)
from itrd_nlp.utils.errors import UserError

BERT, MINILM = BertConfig(), BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)


@pytest.mark.parametrize("config", [BERT, MINILM, DistilBertConfig(), BertConfig(num_hidden_layers=1)], ids=str)
def test_the_default_students_differ_and_fit_their_teacher(config):
    candidates = ladder(config)
    assert len({candidate.name for candidate in candidates}) == len(candidates) <= 9
    head = config.hidden_size // config.num_attention_heads
    for candidate in candidates:
        assert 1 <= candidate.layers <= config.num_hidden_layers
        assert candidate.hidden_size is None or candidate.hidden_size % head == 0


def test_the_default_students_of_bert_base():
    names = ["l8-v8000", "l6-v8000", "l4-v8000", "l3-v8000", "l2-v8000", "l6", "l6-h512-v8000", "l4-h384-v8000"]
    names += ["l2-h256-v8000"]
    assert [candidate.name for candidate in ladder(BERT)] == names


def test_a_small_vocabulary_is_not_cut():
    config = BertConfig(vocab_size=5000, num_hidden_layers=6)
    assert [candidate.name for candidate in ladder(config)] == ["l4", "l3", "l2", "l1", "l3-h512", "l2-h384", "l1-h256"]


def test_what_a_user_lists_is_tried_in_every_combination():
    candidates = ladder(BERT, [3, 2], [768, 384], [4000, 0])
    assert [candidate.name for candidate in candidates] == [
        *("l3-v4000", "l3", "l3-h384-v4000", "l3-h384"),
        *("l2-v4000", "l2", "l2-h384-v4000", "l2-h384"),
    ]
    for n in (3, 5):
        names = [candidate.name for candidate in ladder(MINILM, layers=[n])]
        assert names == [f"l{n}-v8000", f"l{n}", f"l{n}-h256-v8000"]
    names = [candidate.name for candidate in ladder(MINILM, layers=[2, 5])]
    assert names == ["l2-v8000", "l5-v8000", "l2", "l5", "l2-h256-v8000", "l5-h256-v8000"]


def test_a_vocabulary_that_the_teacher_does_not_exceed_is_the_whole_one():
    assert [candidate.name for candidate in ladder(BERT, [3], vocabularies=[40000, BERT.vocab_size, 0, 4000])] == [
        *("l3", "l3-v4000")
    ]


def test_a_student_that_equals_a_smaller_one_is_not_said_to_be_worse():
    trials = {"small": Trial(1, 1, 0.5), "large": Trial(2, 1, 0.5), "worse": Trial(3, 1, 0.4)}
    said = [reason(name, ["small"], trials, Goal(), "small") for name in trials]
    assert said == ["chosen", "small is as good and no larger", "small is better and no larger"]


def test_a_narrower_student_gets_a_narrower_feed_forward_network():
    (words,) = Candidate(3, 256, 8000).words(MINILM, hidden_dropout_prob=0)
    assert words == (
        '--student={"from": "teacher", "layers": "first:3", "hidden_dropout_prob": 0, "vocabulary": 8000, '
        '"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 1024}'
    )
    (words,) = Candidate(3, 512).words(DistilBertConfig())
    assert '"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048' in words


@pytest.mark.parametrize(
    "sizes",
    [{"layers": [13]}, {"layers": [0]}, {"hidden_sizes": [1000]}, {"hidden_sizes": [500]}, {"vocabularies": [-1]}],
    ids=str,
)
def test_sizes_that_the_teacher_does_not_have_are_refused(sizes):
    with pytest.raises(UserError, match=f"^--{next(iter(sizes))} -?\\d+: expected"):
        ladder(BERT, **sizes)


def test_a_model_of_one_head_has_no_narrower_student():
    assert all(each.hidden_size is None for each in ladder(tiny.config(num_attention_heads=1)))
    assert ladder(FNetConfig(num_hidden_layers=4))


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


def test_a_student_that_grew_makes_only_those_needless_that_are_larger_than_it_is_now():
    trials = {"a": Trial(8, 9, 0.6), "b": Trial(9, 8, 0.7), "c": Trial(10, 7, 0.8), "d": Trial(14, 6, 0.9)}
    names, goal = frontier(trials), Goal(0.95)
    trials["b"] = trials["b"]._replace(mib=12, kept=0.96)  # a part stays in fp32
    assert next_student(names, trials, goal) == "c"
    trials["c"] = trials["c"]._replace(kept=0.97)
    assert next_student(names, trials, goal) == "a"
    assert choose(trials, goal) == ("c", True)


def test_a_tokenizer_that_cannot_be_cut_leaves_the_whole_vocabulary():
    assert all(each.vocabulary is None for each in ladder(BERT, small=0))
    assert {each.vocabulary for each in ladder(BERT, small=20_000)} == {20_000, None}
    assert all(each.vocabulary is None for each in ladder(CanineConfig()))


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
