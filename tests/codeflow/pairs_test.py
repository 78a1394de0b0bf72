from __future__ import annotations

import collections

import hypothesis
import hypothesis.strategies as st
import pytest

from iterpref_jax.codeflow import draws, filters, pairs, records
from iterpref_jax.errors import UserError


def trajectory(task_id, verdicts, task=None):
    """A history whose versions pass as `verdicts` says, e.g. "..+"; version n has the code "vN"."""
    versions = tuple(
        records.Version(
            code=f"v{n}", passed=verdict == "+", error_type=None if verdict == "+" else f"Error{n}", stderr_tail=""
        )
        for n, verdict in enumerate(verdicts)
    )
    return records.Trajectory(
        task_id=task_id,
        source="here",
        instruction=f"Do {task_id}.",
        test_code="",
        setup_code="",
        versions=versions,
        meta={} if task is None else {"task": task},
    )


def make(trajectories, choose="all", max_per_task=0, seed=0, skipped=None):
    settings = pairs.PairSettings(choose=choose, max_per_task=max_per_task, seed=seed)
    return list(pairs.make_pairs(trajectories, settings, skipped))


def names(made):
    return [pair.pair_id for pair in made]


def test_the_last_version_is_chosen_and_an_earlier_failing_one_rejected():
    (pair,) = make([trajectory("t", "..+", task="group")], "last")
    assert pair == records.Pair(
        pair_id="t#v1",
        task="group",
        prompt="Do t.",
        chosen="v2",
        rejected="v1",
        form="code",
        meta={"trajectory": "t", "source": "here", "version": 1, "versions": 3, "error_type": "Error1"},
    )


@pytest.mark.parametrize(
    ("choose", "wanted"), [("first", ["t#v1"]), ("last", ["t#v4"]), ("all", ["t#v1", "t#v2", "t#v4"])]
)
def test_the_rejected_version_is_the_one_asked_for(choose, wanted):
    assert names(make([trajectory("t", "+..+.+")], choose)) == wanted


def test_random_draws_one_failing_version_evenly():
    counts = collections.Counter(
        pair.pair_id[-2:] for pair in make([trajectory(f"task {n}", ".+..+") for n in range(900)], "random")
    )
    assert counts.keys() == {"v0", "v2", "v3"}
    assert all(240 < count < 360 for count in counts.values())


def test_random_draws_depend_on_the_seed():
    many = [trajectory(f"task {n}", "...+") for n in range(30)]
    assert names(make(many, "random")) == names(make(many, "random"))
    assert names(make(many, "random")) != names(make(many, "random", seed=1))


MANY = [trajectory(f"row {n}", "." * (1 + n % 4) + "+", task=f"task {n % 3}") for n in range(12)]


@hypothesis.given(
    st.permutations(MANY), st.sampled_from(["random", "first", "last", "all"]), st.sampled_from([0, 1, 3])
)
def test_the_order_of_the_file_changes_no_pair(shuffled, choose, max_per_task):
    expected = set(names(make(MANY, choose, max_per_task)))
    assert set(names(make(shuffled, choose, max_per_task))) == expected


@pytest.mark.parametrize("choose", ["random", "all"])
def test_the_limit_counts_over_all_trajectories_of_a_task(choose):
    skipped = collections.Counter()
    unlimited = make(MANY, choose)
    made = make(MANY, choose, max_per_task=2, skipped=skipped)
    assert collections.Counter(pair.task for pair in made) == {"task 0": 2, "task 1": 2, "task 2": 2}
    assert skipped == {"over_task_limit": len(unlimited) - 6}
    assert [name for name in names(unlimited) if name in set(names(made))] == names(made)


def test_which_pairs_the_limit_keeps_depends_on_the_seed():
    versions = [trajectory("t", "." * 30 + "+")]
    assert names(make(versions, max_per_task=5)) != names(make(versions, max_per_task=5, seed=1))


def test_what_gives_no_pair_is_counted_by_reason():
    skipped = collections.Counter()
    made = make(
        [trajectory("a", ".."), trajectory("b", "+"), trajectory("c", "++"), trajectory("d", ".+.+")], skipped=skipped
    )
    assert names(made) == ["d#v0", "d#v2"]
    assert skipped == {"chosen_fails": 1, "no_failing_version": 2, "rejected_passes": 2}


def test_every_reason_is_among_the_named_rules():
    skipped = collections.Counter()
    make([trajectory("a", "."), trajectory("b", "++"), trajectory("c", "..+")], max_per_task=1, skipped=skipped)
    assert len(skipped) == 4
    assert skipped.keys() <= {rule.name for rule in filters.RULES}


def test_draws_never_change():
    # Another value would give other pairs, and other augmented focus, from the same data and seed.
    assert draws.draw(7, "version", "task é") == 7173933126743801210
    assert draws.draw(7, "a", "bc") != draws.draw(7, "ab", "c")


def test_wrong_settings_are_refused():
    with pytest.raises(
        UserError, match="choose must be one of random, first, last, all, not 'lats'; did you mean 'last'"
    ):
        make([], "lats")
    with pytest.raises(UserError, match="max_per_task must be 0"):
        make([], max_per_task=-1)
