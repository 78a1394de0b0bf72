"""Trains a small byte-level BPE tokenizer with a ChatML template on the programs of a trajectories or pairs file.

    python launch/train_tokenizer.py FILE [FILE ...] --out FOLDER [--vocab_size 4096]

For runs from scratch (the demo); a pretrained model brings its own tokenizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

from iterpref_jax.codeflow import records

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts(path: str) -> Iterator[str]:
    """Yields the instructions and programs of a file."""
    if records.file_kind(path) == "trajectories":
        for trajectory in records.read_trajectories(path):
            yield trajectory.instruction
            yield from (version.code for version in trajectory.versions)
    else:
        for pair in records.read_pairs(path):
            yield from (pair.chosen, pair.rejected)
            yield pair.prompt if isinstance(pair.prompt, str) else "\n".join(turn["content"] for turn in pair.prompt)


def train(paths: list[str], out: str, vocab_size: int) -> int:
    """Writes the tokenizer folder; returns the size of its vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for path in paths for text in texts(path)), trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(out)
    return len(fast)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("inputs", nargs="+", metavar="FILE")
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--vocab_size", type=int, default=4096)
    options = arguments.parse_args()
    print(f"{train(options.inputs, options.out, options.vocab_size)} tokens: {options.out}")


if __name__ == "__main__":
    main()
