"""Tiny tokenizers, trained in the test: one byte-level, one SentencePiece-like; and pairs to encode."""

from __future__ import annotations

import filecmp
import functools
import os
import pathlib

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from iterpref_jax.codeflow import filters, records
from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.codeflow import pairs as pairing
from iterpref_jax.data import build, text_rules

CORPUS = [
    "def add(a, b):\n    return a + b\n",
    "for i in range(10):\n    if i % 2 == 0:\n        print(i)\n",
    "```python\nprint('héllo')\n```",
    "import os\nimport sys\n\nclass A:\n\tpass\n",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
REAL = ("qwen2.5", "deepseek-coder", "starcoder2", "codellama")


@functools.cache
def byte_level_json(nfc: bool = False, bos: bool = False) -> str:
    """A byte-level BPE as Qwen and StarCoder have it; `bos` puts `<s>` in front as Llama 3 does."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    special = ["</s>", "<s>", "<|turn|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens(special)
    if bos:
        pairs = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=pairs)
    return tokenizer.to_str()


@functools.cache
def metaspace_json() -> str:
    """A BPE that puts a space in front of every text, as Llama 2 does; it knows no character beyond ASCII."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    alphabet = [chr(i) for i in range(32, 127)] + ["\n", "\t", "\r"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    # Newlines stay tokens of their own, as in SentencePiece vocabularies: none is in the training text.
    tokenizer.train_from_iterator([line for text in CORPUS for line in text.splitlines()], trainer)
    return tokenizer.to_str()


def byte_level(nfc: bool = False, bos: bool = False, chat_template: str | None = None, eos: str | None = "</s>"):
    """Returns the byte-level tokenizer as transformers loads it."""
    backend = tokenizers.Tokenizer.from_str(byte_level_json(nfc, bos))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)
    tokenizer.chat_template = chat_template
    return tokenizer


def metaspace():
    """Returns the SentencePiece-like tokenizer as transformers loads it."""
    backend = tokenizers.Tokenizer.from_str(metaspace_json())
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def data_folder(name: str) -> pathlib.Path:
    """Returns a folder of the real data; skips the test where it is absent."""
    root = os.environ.get("ITERPREF_DATA")
    if not root or not (pathlib.Path(root) / name).is_dir():
        pytest.skip(f"set ITERPREF_DATA to the folder that holds {name}")
    return pathlib.Path(root).resolve() / name


@functools.cache
def _load(path: pathlib.Path):
    return text_rules.load_tokenizer(str(path))


def real(name: str):
    """Returns one of the `REAL` tokenizers; skips the test where they are absent."""
    return _load(data_folder("tokenizers") / name)


def settings(**changes) -> text_rules.TextSettings:
    """Raw template, Python fence, end of sequence; changed by `changes`."""
    known = {"tokenizer": "tiny", "template": "raw", "system": "", "fence": "python", "eos": "append"}
    return text_rules.TextSettings(**known | {"raw_separator": "\n", "template_kwargs": {}} | changes)


def pair(chosen: str, rejected: str = "pass", prompt="Do it.", form: str = "code", pair_id: str = "p0", task="t0"):
    """Returns a pair."""
    return records.Pair(pair_id=pair_id, task=task, prompt=prompt, chosen=chosen, rejected=rejected, form=form, meta={})


def trajectories(count: int) -> list[records.Trajectory]:
    """Returns histories of three versions; every fifth repair only inserts, every task has two histories."""
    return [_trajectory(i) for i in range(count)]


def _trajectory(i: int) -> records.Trajectory:
    good = f"def f{i}(a, b):\n    c = a * {i}\n    return c + b\n"
    bad = good.replace(f"    c = a * {i}\n", "") if i % 5 == 0 else good.replace("+ b", "- b")
    worse = bad.replace("return c", f"return {i}")
    versions = [(worse, "NameError"), (bad, "AssertionError"), (good, None)]
    return records.Trajectory(
        task_id=f"h{i}",
        source="made",
        instruction=f"Write f{i // 2}.",
        test_code="",
        setup_code="",
        versions=tuple(
            records.Version(code=code, passed=error is None, error_type=error, stderr_tail="")
            for code, error in versions
        ),
        meta={"task": f"t{i // 2}"},
    )


def build_settings(tokenizer_path, **changes) -> build.BuildSettings:
    """Every earlier version, focus by lines, all filters, no split; changed by `changes`."""
    known = {
        "pairs": pairing.PairSettings(choose="all", max_per_task=0, seed=0),
        "focus": focusing.FocusSettings(mode="line", empty="drop", seed=0),
        "filters": filters.FilterSettings(
            max_focus_lines=20,
            drop_comment_focus=True,
            drop_same_ast=True,
            drop_duplicates=True,
            benchmarks=(),
            ngram=10,
        ),
        "text": settings(tokenizer=str(tokenizer_path)),
        "max_prompt_tokens": 100,
        "max_tokens": 1000,
        "eval_fraction": 0.0,
        "seed": 0,
        "shard_pairs": 1000,
        "workers": 0,
    }
    return build.BuildSettings(**known | changes)


def files(folder: pathlib.Path) -> list[str]:
    """The files under a folder, by relative path."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def assert_same_folder(left: pathlib.Path, right: pathlib.Path) -> None:
    """Both folders hold the same files with the same bytes."""
    assert files(left) == files(right)
    _, mismatch, broken = filecmp.cmpfiles(left, right, files(left), shallow=False)
    assert (mismatch, broken) == ([], [])
