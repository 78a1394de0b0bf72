"""Language models behind an OpenAI-compatible endpoint: every answer is journalled before it is returned.

with open_journal(folder / "journal.sqlite") as journal:
    async with open_client(settings, journal) as client:
        answer = await client.ask(Ask(messages=..., sampling=..., purpose="tests", prompt_version="1"))
"""

from iterpref_jax.codeflow.endpoint.asks import Answer, Ask, Sampling
from iterpref_jax.codeflow.endpoint.client import Client, MalformedAnswer, open_client
from iterpref_jax.codeflow.endpoint.journal import ANSWER, WASTE, Journal, Totals, open_journal
from iterpref_jax.codeflow.endpoint.policy import AskFailed
from iterpref_jax.codeflow.endpoint.settings import EndpointSettings
from iterpref_jax.codeflow.endpoint.spending import BudgetSpent

__all__ = [
    "ANSWER",
    "WASTE",
    "Answer",
    "Ask",
    "AskFailed",
    "BudgetSpent",
    "Client",
    "EndpointSettings",
    "Journal",
    "MalformedAnswer",
    "Sampling",
    "Totals",
    "open_client",
    "open_journal",
]
