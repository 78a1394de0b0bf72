"""A tokenizer, small chunks and 30 histories, for the tests of builds."""

from __future__ import annotations

import pytest

from iterpref_jax.codeflow import records
from iterpref_jax.data import chunks
from tests.data import tiny


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE).save_pretrained(path)
    return path


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_PAIRS", 8)


@pytest.fixture
def histories(tmp_path):
    path = tmp_path / "histories.jsonl"
    records.write_trajectories(path, tiny.trajectories(30))
    return path
