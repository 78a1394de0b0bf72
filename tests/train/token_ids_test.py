"""Records whose tokens the model has no rows for, and tokenizers that merely have more tokens than it has rows."""

import pytest

from iterpref_jax.data.schema import open_dataset
from iterpref_jax.data.text_rules import load_tokenizer
from iterpref_jax.errors import UserError
from iterpref_jax.train.token_ids import check_tokenizer
from tests.support.models import model_config
from tests.support.runs import make_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    dataset = open_dataset(make_dataset(tmp_path_factory.mktemp("dataset")))
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(dataset.tokenizer_path)
    return dataset


def largest_id(dataset):
    examples = (dataset.split(name)[i] for name in dataset.splits for i in range(len(dataset.split(name))))
    return max(max(map(int, [*one.prompt_ids, *one.chosen_ids, *one.rejected_ids])) for one in examples)


def test_tokens_beyond_the_models_rows_that_no_record_holds_are_no_fault(dataset):
    rows = largest_id(dataset) + 1
    assert rows < len(load_tokenizer(dataset.tokenizer_path))
    check_tokenizer(dataset, "", model_config(vocab_size=rows), exported=False)


def test_a_record_that_holds_one_is_named(dataset):
    most = largest_id(dataset)
    with pytest.raises(
        UserError, match=rf"the model only {most}, and the (train|eval) pair '.*' holds the token {most}"
    ):
        check_tokenizer(dataset, "", model_config(vocab_size=most), exported=False)
