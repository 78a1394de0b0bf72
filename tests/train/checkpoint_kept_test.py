"""Which checkpoints are kept: the newest, and the best by a held-out metric."""

import contextlib

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.train.best import Best, parse_best
from iterpref_jax.train.checkpoint import Checkpoints
from tests.support.states import make_state, restored, same

STATE = make_state()
ACCURACY, LOSS = Best("focus/accuracies", True), Best("loss", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("loss", Best("loss", False)),
        ("preference_loss", Best("preference_loss", False)),
        ("focus/accuracies", Best("focus/accuracies", True)),
        ("rewards/margins", Best("rewards/margins", True)),
        ("+logps/chosen", Best("logps/chosen", True)),
        ("-entropy", Best("entropy", False)),
        ("-focus/accuracies", Best("focus/accuracies", False)),
    ],
)
def test_a_name_or_a_sign_says_whether_more_is_better(text, expected):
    assert parse_best(text) == expected


def test_a_name_that_says_nothing_needs_a_sign():
    with pytest.raises(UserError, match=r"\+logps/chosen, or less, -logps/chosen"):
        parse_best("logps/chosen")


def test_the_best_is_the_most_or_the_least_and_of_equals_the_first():
    scores = {2: 0.5, 4: 0.75, 6: 0.75, 8: 0.25}
    assert ACCURACY.step(scores) == 4
    assert LOSS.step(scores) == 8
    assert LOSS.step({}) is None


def test_a_metric_that_evaluation_does_not_give_is_refused_with_those_that_it_gives():
    told = r"no 'focus/accuracy'; did you mean 'focus/accuracies'\?; it gives focus/accuracies, loss"
    with pytest.raises(UserError, match=told):
        Best("focus/accuracy", True).score({"loss": 1.0, "focus/accuracies": 0.5})


def test_scores_are_those_of_held_out_lines():
    lines = [
        {"step": 2, "split": "eval", "loss": 0.5},
        {"step": 2, "split": "train", "loss": 0.1},
        {"step": 4, "split": "eval", "loss": 0.25},
        {"step": 4, "split": "goodput", "update": 0.5},
    ]
    assert LOSS.scores(lines) == {2: 0.5, 4: 0.25}


def save_all(folder, scores, *, keep, best):
    """Saves a checkpoint a score, each evaluated after it was saved; returns the steps that are left."""
    with contextlib.closing(Checkpoints(str(folder), keep=keep, writing=True, best=best)) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, STATE, {"step": step})
            if score is not None:
                checkpoints.scored({step: score})
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_newest_are_kept_and_nothing_else_without_a_metric(tmp_path):
    assert save_all(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3}, keep=2, best=None) == [3, 4]


def test_the_best_is_kept_beside_the_newest(tmp_path):
    assert save_all(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4}, keep=2, best=parse_best("+x")) == [2, 4, 5]


def test_of_less_is_better_the_least_is_kept(tmp_path):
    assert save_all(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3}, keep=1, best=parse_best("-x")) == [1, 4]


def test_a_better_one_takes_the_place_of_the_best(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.2, 4: 0.95, 5: 0.1, 6: 0.3}
    assert save_all(tmp_path, scores, keep=1, best=parse_best("+x")) == [4, 6]


def test_checkpoints_without_an_evaluation_are_kept_as_the_newest_only(tmp_path):
    assert save_all(tmp_path, {1: None, 2: 0.9, 3: None, 4: None}, keep=1, best=parse_best("+x")) == [2, 4]


def test_a_run_that_is_opened_again_keeps_the_best_of_before(tmp_path):
    save_all(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2}, keep=1, best=parse_best("+x"))
    with contextlib.closing(Checkpoints(str(tmp_path), keep=1, writing=True, best=parse_best("+x"))) as checkpoints:
        checkpoints.scored({1: 0.1, 2: 0.9, 3: 0.2})
        for step in (4, 5):
            checkpoints.save(step, STATE, {"step": step})
            checkpoints.scored({step: 0.3})
        assert checkpoints.about(2) == {"step": 2}
        assert same(restored(checkpoints, 2, STATE), STATE)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 5]
