"""Trains a small byte-level BPE tokenizer with a ChatML template on the programs of a trajectories or pairs file.

    python launch/train_tokenizer.py FILE [FILE ...] --out FOLDER [--vocab_size 4096]

For runs from scratch (the demo); a pretrained model brings its own tokenizer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import transformers

from iterpref_jax.codeflow import records
from iterpref_jax.errors import UserError

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
    # A tokenizer class of its own kind: transformers picks the class by the model_type beside it, and one that
    # splits text in another way would read other tokens than those that were trained on.
    empty = transformers.Qwen2Tokenizer(eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE)
    every_text = (text for path in paths for text in texts(path))
    fast = empty.train_new_from_iterator(every_text, vocab_size, show_progress=False)
    fast.save_pretrained(out)
    return len(fast)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("inputs", nargs="+", metavar="FILE")
    arguments.add_argument("--out", required=True)
    arguments.add_argument("--vocab_size", type=int, default=4096)
    options = arguments.parse_args()
    try:
        print(f"{train(options.inputs, options.out, options.vocab_size)} tokens: {options.out}")
    except UserError as error:
        sys.exit(f"train_tokenizer.py: error: {error}")


if __name__ == "__main__":
    main()
