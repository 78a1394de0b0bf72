"""Language models behind an OpenAI-compatible endpoint: every answer is journalled before it is returned."""

from iterpref_jax.codeflow.endpoint.asks import Answer, Ask, Sampling
from iterpref_jax.codeflow.endpoint.journal import ANSWER, Journal, Totals, open_journal

__all__ = ["ANSWER", "Answer", "Ask", "Journal", "Sampling", "Totals", "open_journal"]
