"""Budgets: no call passes a limit, over all runs with one journal, and what fits is not held back."""

import asyncio

import pytest

from iterpref_jax.codeflow.endpoint import BudgetSpent, Sampling, spending
from tests.codeflow.endpoint.asking import answers_of, ask_of, with_client
from tests.support.llm_server import cut, refuse, say, serving

# A call is at most 9 + 16 + 64 bytes of a prompt and 11 tokens of an answer: 100 tokens, 1 USD with these prices.
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=11)
PRICES = {"usd_per_million_prompt": 10_000.0, "usd_per_million_completion": 10_000.0}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def asks(*numbers):
    return [ask_of(f"number {i:02}", sampling=SAMPLING) for i in numbers]


def split(found):
    """The number of answers and of calls that a limit stopped; anything else is raised."""
    stopped = [one for one in found if isinstance(one, BudgetSpent)]
    for one in found:
        if isinstance(one, Exception) and one not in stopped:
            raise one
    return len(found) - len(stopped), len(stopped)


def test_the_bound_of_a_call_is_what_these_tests_say():
    assert spending.most_prompt_tokens(*asks(0)) + SAMPLING.max_tokens == 100


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("limit", "answered"), [({"max_calls": 5}, 5), ({"max_total_tokens": 250}, 16), ({"budget_usd": 2.5}, 16)]
)
def test_calls_stop_before_one_could_pass_a_limit_and_use_what_running_ones_leave(path, limit, answered, concurrency):
    # An answer takes 10 tokens of the 100 that it might: 16 calls leave 90, which hold no other.
    with serving(lambda request: say("x", usage=(9, 1))) as server:
        found, _ = answers_of(path, server.url, *asks(*range(30)), concurrency=concurrency, **PRICES, **limit)
    assert split(found) == (answered, 30 - answered)
    assert len(server.requests) == answered


def test_a_limit_holds_over_all_runs_with_one_journal_and_kept_answers_cost_nothing(path):
    with serving(lambda request: say("x")) as server:
        first, _ = answers_of(path, server.url, *asks(0, 1, 2), max_calls=3)
        second, _ = answers_of(path, server.url, *asks(0, 1, 2, 3), max_calls=3)
        third, _ = answers_of(path, server.url, *asks(0, 1, 2, 3), max_calls=4)
    assert [split(found) for found in (first, second, third)] == [(3, 0), (3, 1), (4, 0)]


def test_a_call_that_is_stopped_names_the_limit_and_what_was_spent(path):
    with serving(lambda request: say("x", usage=(9, 1))) as server:
        found, _ = answers_of(path, server.url, *asks(0, 1), concurrency=1, budget_usd=1.05, **PRICES)
    message = (
        r"endpoint\.budget_usd = 1\.05 could be passed by the next call; spent so far: 1 calls, 10 tokens, 0\.1000"
    )
    with pytest.raises(BudgetSpent, match=message):
        raise found[1]


def test_answers_that_broke_off_count_and_refusals_do_not(path):
    def behave(request):
        return [refuse(500), cut(), cut(3), say("x")][request.number]

    async def use(client):
        await client.ask(*asks(0))
        return client._spending.spent.calls

    with serving(behave) as server:
        assert with_client(path, server.url, use, tries=5) == 2
        found, _ = answers_of(path, server.url, *asks(0, 1), max_calls=2)
    assert split(found) == (1, 1)


def test_a_cancelled_ask_gives_back_what_it_had_set_aside(path):
    async def use(client):
        slow = asyncio.create_task(client.ask(*asks(0)))
        await asyncio.sleep(0.1)
        slow.cancel()
        return await client.ask(*asks(1))

    def behave(request):
        return say("x" * 20, pieces=20, pause_s=1.0 if request.text.endswith("00") else 0.0)

    with serving(behave) as server:
        assert with_client(path, server.url, use, max_calls=1).text == "x" * 20
