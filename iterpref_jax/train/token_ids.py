"""Whether the token ids of a dataset are those of the model."""

from __future__ import annotations

import json
import tempfile

from etils import epath

from iterpref_jax.data.schema import ID_FIELDS, Dataset
from iterpref_jax.data.text_rules import (
    TextRules,
    check_models_tokenizer,
    load_tokenizer,
    rules_from_json,
    tokenizer_fingerprint,
    transformers_tokenizer,
)
from iterpref_jax.errors import UserError
from iterpref_jax.models.config import ModelConfig
from iterpref_jax.models.hf_config import to_hf

MODEL_TOKENIZER = "tokenizer.json"


def check_tokenizer(dataset: Dataset, model_path: str, config: ModelConfig, exported: bool) -> None:
    """Refuses records whose tokens the model does not know, or knows as others.

    `model_path` is "" for a model from scratch; `exported` says whether that one may be exported.
    """
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    if len(tokenizer) > config.vocab_size:
        _check_ids(dataset, config.vocab_size, len(tokenizer))
    rules = rules_from_json(dataset.metadata["text"])
    if not model_path:
        if exported:
            _check_exportable(tokenizer, config, rules)
    elif (epath.Path(model_path) / MODEL_TOKENIZER).exists():
        check_models_tokenizer(load_tokenizer(model_path), tokenizer, rules, model_path)


def _check_ids(dataset: Dataset, vocab: int, tokens: int) -> None:
    """Refuses records with ids that the model has no row for.

    That the tokenizer has some is no fault yet: Gemma 3's and CodeLlama-34B's have special tokens beyond their models'.
    """
    for name in dataset.splits:
        split = dataset.split(name)
        for record in range(len(split)):
            example = split[record]
            most = max(int(getattr(example, field).max(initial=0)) for field in ID_FIELDS)
            if most >= vocab:
                raise UserError(
                    f"{dataset.path}: its tokenizer has {tokens} tokens, the model only {vocab}, and the {name} pair "
                    f"{example.pair_id!r} holds the token {most}: leave such pairs out, or take the model's tokenizer"
                )


def _check_exportable(tokenizer, config: ModelConfig, rules: TextRules) -> None:
    """Refuses, from scratch, a tokenizer that transformers would load as another one beside this `model_type`.

    It picks the class by the `model_type`, and some classes split text their own way: the exported folder would
    encode other tokens than those that were trained on.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (epath.Path(folder) / "config.json").write_text(json.dumps(to_hf(config)))
        found = tokenizer_fingerprint(transformers_tokenizer(folder))
    if found != rules.tokenizer_fingerprint:
        raise UserError(
            f"transformers would load this tokenizer as another one beside model_type {config.model_type!r}, so the "
            "exported model would read other tokens than it was trained on; train the tokenizer in that family's class "
            "(launch/train_tokenizer.py does, for qwen2) and build the records again"
        )
