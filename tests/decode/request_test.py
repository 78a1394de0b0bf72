"""What a request may ask for."""

import pytest

from iterpref_jax.decode.request import Completion, Piece, Request, join
from iterpref_jax.errors import UserError

VALID = dict(prompt=(1, 2), max_tokens=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ()),
        ("prompt", "text"),
        ("prompt", ("text",)),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("top_p", 1.1),
        ("top_k", -1),
        ("seed", 2**32),
        ("seed", -1),
        ("stop", "text"),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop_token_ids", range(9)),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(UserError, match=field):
        Request(**VALID | {field: value})


def test_lists_become_tuples_so_that_requests_can_be_compared_and_hashed():
    request = Request(prompt=[1, 2], max_tokens=3, stop=["a"], stop_token_ids=[4])
    assert request == Request(prompt=(1, 2), max_tokens=3, stop=("a",), stop_token_ids=(4,))
    assert hash(request) == hash(Request(prompt=(1, 2), max_tokens=3, stop=("a",), stop_token_ids=(4,)))


def test_pieces_join_to_a_completion():
    pieces = [
        Piece(request_id=0, text="a", tokens=(1, 2), logprobs=(-1.0, -2.0), finish_reason=None),
        Piece(request_id=0, text="", tokens=(3,), logprobs=(-3.0,), finish_reason=None),
        Piece(request_id=0, text="b", tokens=(4,), logprobs=(-4.0,), finish_reason="stop"),
    ]
    wanted = Completion(text="ab", tokens=(1, 2, 3, 4), logprobs=(-1.0, -2.0, -3.0, -4.0), finish_reason="stop")
    assert join(pieces) == wanted
