"""Made views: a tiny encoder, one pair of programs, and everything that is shown of it."""

from __future__ import annotations

from iterpref_jax.codeflow import focus as focusing
from iterpref_jax.data import layout, text_rules, tokenize
from iterpref_jax.objectives.weights import find_recipe
from iterpref_jax.view import model as view
from iterpref_jax.view import source as view_source
from iterpref_jax.view import tree as trees
from tests.data import tiny
from tests.support.examples import index_of

EVIL = "</script><b>&amp;"
CHOSEN = f"def f(x):\n\treturn '{EVIL}'  \n\n\n    # 漢字 é\n    return x\n"
REJECTED = f"def f(x):\n\treturn '{EVIL}!'  \n\n\n    # 漢字 è\x1b[31m\u202e\n    return x\n    y = 1\n"


def weighting(name: str, nll_norm: str = "example") -> layout.Weighting:
    return layout.Weighting(recipe=find_recipe(name), seed=3, nll_norm=nll_norm)


def focus_settings(mode: str = "line", empty: str = "anchor") -> focusing.FocusSettings:
    return focusing.FocusSettings(mode=mode, empty=empty, seed=0)


def make_encoder() -> tokenize.Encoder:
    tokenizer = tiny.byte_level(chat_template=tiny.CHAT_TEMPLATE)
    return tokenize.Encoder(tokenizer, text_rules.make_rules(tiny.settings(template="chat"), tokenizer))


def pair_view(chosen=CHOSEN, rejected=REJECTED, mode="line", recipe="", pair_id="p0", with_spans=True) -> view.PairView:
    pair, encoder = tiny.pair(chosen, rejected, pair_id=pair_id), make_encoder()
    focus = focusing.find_focus(chosen, rejected, focus_settings(mode), pair_id)
    [example] = encoder.encode_pairs([pair], [focus])
    shift = len(encoder.rules.fence_open)
    spans = tuple([(a + shift, b + shift) for a, b in side] for side in (focus.chosen, focus.rejected))
    words = view.vocabulary(encoder.tokenizer, encoder.rules)
    name = view.choose_recipe(recipe, mode)
    return view.of_record(example, 0, words, weighting(name), spans=spans if with_spans else None)


def shown(*pairs: view.PairView, name: str = "made") -> view_source.Shown:
    index = index_of([pair.tokens.example for pair in pairs if pair.tokens])
    summary = trees.summary(index, weighting("target_rpo")) if len(index) else None
    return view_source.Shown(
        source=name, about="test", recipe="target_rpo", total=len(pairs), summary=summary, pairs=pairs
    )


def focus_places(lines) -> list[int]:
    places, at = [], 0
    for part in (part for line in lines for run in line.runs for part in run.parts if part.kind != "bytes"):
        places += range(at, at + len(part.text)) if part.is_focus else ()
        at += len(part.text)
    return places
