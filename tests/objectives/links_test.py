"""Every link against numbers computed by hand with `math`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterpref_jax.errors import UserError
from iterpref_jax.objectives.links import LINKS, LinkSettings, Scores, make_link

# One pair: log pi(y+) = -12 (reference -13), log pi(y-) = -9 (reference -7); 6 chosen and 4 rejected tokens.
CHOSEN, REJECTED, CHOSEN_REF, REJECTED_REF = -12.0, -9.0, -13.0, -7.0
CHOSEN_WEIGHT, REJECTED_WEIGHT = 6.0, 4.0
A, B = CHOSEN - CHOSEN_REF, REJECTED - REJECTED_REF  # log-ratios: 1 and -2


def settings(name, **fields):
    zero = dict(label_smoothing=0.0, simpo_gamma=0.0, dpop_lambda=0.0, discopop_tau=0.0)
    return LinkSettings(name=name, **({"beta": 0.5} | zero | fields))


def scores():
    values = (CHOSEN, REJECTED, A, B, CHOSEN_WEIGHT, REJECTED_WEIGHT)
    return Scores(*(jnp.array([value]) for value in values))


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def sigma(x):
    return 1 / (1 + math.exp(-x))


def log_odds(mean):
    return mean - math.log(1 - math.exp(mean))


DELTA = 0.5 * (A - B)  # 1.5
MEAN = 0.5 * (A / 6 - B / 4)  # 1/3

BY_HAND = [
    ("sigmoid", {}, -log_sigmoid(DELTA)),
    ("sigmoid", {"label_smoothing": 0.1}, -0.9 * log_sigmoid(DELTA) - 0.1 * log_sigmoid(-DELTA)),
    ("hinge", {"beta": 0.2}, 1 - 0.2 * 3),
    ("hinge", {}, 0.0),
    ("ipo", {}, (A / 6 - B / 4 - 1) ** 2),
    ("robust", {"label_smoothing": 0.2}, (-0.8 * log_sigmoid(DELTA) + 0.2 * log_sigmoid(-DELTA)) / 0.6),
    (
        "exo_pair",
        {"label_smoothing": 0.1},
        sigma(DELTA) * (log_sigmoid(DELTA) - math.log(0.9)) + sigma(-DELTA) * (log_sigmoid(-DELTA) - math.log(0.1)),
    ),
    ("nca_pair", {}, -log_sigmoid(0.5) - 0.5 * log_sigmoid(-0.5) - 0.5 * log_sigmoid(1.0)),
    ("bco_pair", {}, -log_sigmoid(0.5) - log_sigmoid(1.0)),
    ("sppo_hard", {}, (1 - 1) ** 2 + (-2 + 1) ** 2),
    ("apo_zero", {}, 1 - sigma(0.5) + sigma(-1.0)),
    ("apo_down", {}, sigma(0.5) + 1 - sigma(1.5)),
    (
        "discopop",
        {"discopop_tau": 0.05},
        -log_sigmoid(DELTA) * (1 - sigma(DELTA / 0.05)) + math.exp(-DELTA) * sigma(DELTA / 0.05),
    ),
    ("sigmoid_norm", {}, -log_sigmoid(MEAN)),
    ("dpop", {"dpop_lambda": 5.0}, -log_sigmoid(DELTA)),
    ("simpo", {"simpo_gamma": 0.3}, -log_sigmoid(0.5 * (-12 / 6 + 9 / 4) - 0.3)),
    ("cpo", {}, -log_sigmoid(0.5 * (-12 + 9))),
    ("orpo", {}, -0.5 * log_sigmoid(log_odds(-2.0) - log_odds(-9 / 4))),
]


@pytest.mark.parametrize(("name", "fields", "expected"), BY_HAND)
def test_a_link_equals_the_number_computed_by_hand(name, fields, expected):
    np.testing.assert_allclose(make_link(settings(name, **fields))(scores()), [expected], rtol=1e-5, atol=1e-6)


def test_every_link_has_a_number_computed_by_hand():
    assert {name for name, _, _ in BY_HAND} == set(LINKS)


def test_dpop_pays_for_a_fallen_chosen_log_prob():
    fallen = scores()._replace(chosen_logratios=jnp.array([-1.0]))
    got = make_link(settings("dpop", dpop_lambda=5.0))(fallen)
    np.testing.assert_allclose(got, [-log_sigmoid(0.5 * (-1 + 2 - 5 * 1))], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, link in LINKS.items() if "label_smoothing" not in link.reads])
def test_label_smoothing_is_never_silently_ignored(name):
    needed = {"dpop": {"dpop_lambda": 1.0}, "discopop": {"discopop_tau": 1.0}}.get(name, {})
    with pytest.raises(UserError, match=r"label_smoothing = 0\.1 has no effect"):
        make_link(settings(name, label_smoothing=0.1, **needed))


@pytest.mark.parametrize(("name", "fields"), [(name, fields) for name, fields, _ in BY_HAND])
def test_a_link_and_its_gradient_are_numbers_for_pairs_that_went_far_astray(name, fields):
    link = make_link(settings(name, **fields))

    def total(chosen, rejected):
        # Log-probs, which reference-free links read, are never above 0.
        logps = dict(chosen_logps=jnp.minimum(chosen, 0.0)[None], rejected_logps=jnp.minimum(rejected, 0.0)[None])
        found = scores()._replace(chosen_logratios=chosen[None], rejected_logratios=rejected[None], **logps)
        return link(found).sum()

    for far in (-2000.0, 300.0), (300.0, -2000.0), (-2000.0, -5.0), (-1e-9, -2000.0), (-5.0, -1e-9):
        value, gradients = jax.value_and_grad(total, (0, 1))(*map(jnp.float32, far))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradients))


def test_an_unknown_link_gets_the_closest_name():
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        make_link(settings("sigmod"))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sigmoid", {"beta": 0.0}),
        ("exo_pair", {}),
        ("dpop", {}),
        ("discopop", {}),
        ("robust", {"label_smoothing": 0.5}),
    ],
)
def test_numbers_out_of_range_are_refused(name, fields):
    with pytest.raises(UserError):
        make_link(settings(name, **fields))
