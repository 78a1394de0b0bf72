"""What a resumed run may change, and what it may not."""

import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.train.same_run import check_same_run

INPUT = {"weights": "abc"}


def config(rows=4, balance=0.0, path="a", learning_rate=1e-5, **more):
    return {
        "rows": {"rows_per_microbatch": rows, "tokens": 64} | more,
        "objective": {"router_aux_loss_coef": balance},
        "model": {"path": path},
        "optimizer": {"learning_rate": learning_rate},
    }


def check(old, new, weights="abc"):
    check_same_run("RUN", {"config": old, "fingerprint": INPUT}, new, {"weights": weights})


def test_rows_a_microbatch_and_the_place_of_the_model_may_change():
    check(config(), config(rows=16, path="gs://bucket/a"))


def test_other_weights_at_the_same_place_may_not():
    with pytest.raises(UserError, match="another input:\n  weights: was 'abc', is 'def'"):
        check(config(), config(path="b"), weights="def")


def test_what_changes_the_loss_may_not():
    with pytest.raises(UserError, match=r"optimizer\.learning_rate: was 1e-05, is 0\.1"):
        check(config(), config(learning_rate=0.1))


def test_rows_a_microbatch_may_not_where_the_routers_loss_is_of_a_microbatch():
    with pytest.raises(UserError, match=r"rows\.rows_per_microbatch = 4, now it is 2: the router's loss"):
        check(config(balance=0.01, lengths=1), config(balance=0.01, rows=2, lengths=1))


def test_a_run_from_before_rows_were_shortened_goes_on_but_not_with_the_routers_loss():
    check(config(), config(lengths=1))
    check(config(balance=0.01), config(balance=0.01, lengths=0))
    with pytest.raises(UserError, match=r"rows\.lengths = 0, now it is 1: the router's loss"):
        check(config(balance=0.01), config(balance=0.01, lengths=1))


def test_a_run_from_before_steps_chose_their_length_goes_on_with_the_one_it_had():
    check(config(balance=0.01, shorten=True), config(balance=0.01, lengths=1))
    with pytest.raises(UserError, match=r"rows\.lengths = 1, now it is 3: the router's loss"):
        check(config(balance=0.01, shorten=True), config(balance=0.01, lengths=3))
