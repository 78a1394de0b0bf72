"""Strings that end a base model's completion, as EvalPlus has them: the first line that is no longer the answer."""

BASE = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
HUMAN_EVAL = ("\nimport ", "\nfrom ", "\nassert ", "\nclass ", "\ndef ")
MBPP = ('\n"""', "\nassert")
# Of an answer that was begun with an opened fence.
FENCE = ("\n```\n",)
