"""From text settings and a tokenizer to explicit rules: template, fence, end of sequence, guard.

What a tokenizer does by itself is found out once, by probing, and stored beside the records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jinja2
import tokenizers

from iterpref_jax.data import token_bytes
from iterpref_jax.errors import UserError, did_you_mean

GUARD = "\n"
# What a template is given in any case.
WRITTEN = ("messages", "add_generation_prompt")
ANSWER_PROBE = "answer9b1f"
START_PROBES = ("x", " x", "  x", "\tx")
# All printable ASCII, spaces of all kinds, characters of 2 to 4 bytes.
TABLE_PROBE = "x = 'é'\r\n\tif  x:\n\n        return \"😀 漢字\"  # õ ß\n" + "".join(map(chr, range(32, 127)))
ASCII_PROBE = "".join(filter(str.isascii, TABLE_PROBE))
# That of configs/base.py, which every config has, and none.
UNSET_SEPARATORS = ("\n", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How pairs become text: `tokenizer` is a folder or a hub name; `system` may be empty (no system message).

    `raw_separator` stands between prompt and program when `template` is "raw" (pairs of form "text" are joined as they
    stand). `template_kwargs` are what the chat template reads beside the messages, such as Qwen3's `enable_thinking`.
    """

    tokenizer: str
    template: Literal["chat", "raw"]
    system: str
    fence: Literal["python", "none"]
    eos: Literal["append", "none"]
    raw_separator: str
    template_kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        if self.template_kwargs and self.template == "raw":
            raise UserError(
                f'text.template_kwargs ({", ".join(self.template_kwargs)}) has no effect: text.template is "raw"; '
                "leave it empty in the config file"
            )
        if self.system and self.template == "raw":
            raise UserError('text.system has no effect: text.template is "raw", which has no messages; leave it empty')
        if self.raw_separator not in UNSET_SEPARATORS and self.template == "chat":
            raise UserError(
                f'text.raw_separator = {self.raw_separator!r} has no effect: text.template is "chat", which has '
                'its own words between prompt and program; leave it out, or set text.template to "raw"'
            )
        for name, kind in get_type_hints(TextSettings).items():
            value, known = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal and value not in known:
                raise UserError(
                    f"text.{name} must be one of {', '.join(known)}, not {value!r}{did_you_mean(str(value), known)}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRules:
    """The same with everything that was derived from the tokenizer.

    `guard` is text in front of a completion whose tokens, `guard_ids`, are dropped: it keeps away the space that
    SentencePiece-like tokenizers put in front. `unicode_form` is "" or what the tokenizer normalises to.
    """

    template: str
    chat_template: str
    template_kwargs: dict[str, Any]
    system: str
    raw_separator: str
    fence_open: str
    fence_close: str
    eos_ids: tuple[int, ...]
    unicode_form: str
    guard: str
    guard_ids: tuple[int, ...]
    tokenizer_fingerprint: str


def load_tokenizer(path: str):
    """Returns the fast transformers tokenizer of a folder, a .gguf file or a hub name, local files first.

    A folder's tokenizer.json is what its model was trained with. transformers 5 puts classes that split text their own
    way in its place for some values of `model_type` (any SentencePiece-like one beside qwen2); then the plain class is
    taken, which keeps to the file.

    Raises UserError if there is none, or only a slow one, or one that does not read text as its tokenizer.json does.
    """
    tokenizer = transformers_tokenizer(path)
    file = _tokenizer_json(str(path))
    if file is None or _reads_as(tokenizer, file):
        return tokenizer
    import transformers

    plain = _loaded(transformers.PreTrainedTokenizerFast, str(path))
    if not _reads_as(plain, file):
        raise UserError(
            f"transformers loads the tokenizer at {str(path)!r} so that it splits text otherwise than its "
            "tokenizer.json says, in every class: save it once with transformers (save_pretrained) and name that folder"
        )
    return plain


def transformers_tokenizer(path: str):
    """Returns what AutoTokenizer makes of `path`, right or wrong; see `load_tokenizer` for the errors."""
    # Without it the import says that torch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    if not str(path):
        raise UserError("text.tokenizer is empty: name a folder with tokenizer.json, or a hub name")
    tokenizer = _loaded(transformers.AutoTokenizer, str(path))
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer at {str(path)!r} ({type(tokenizer).__name__}) has no fast version: convert it to a "
            "tokenizer.json once (transformers.convert_slow_tokenizer) and name that folder"
        )
    return tokenizer


def _loaded(kind, path: str):
    try:
        return _from_pretrained(kind, path)
    except (OSError, ValueError) as error:
        wanted = "wanted a folder with tokenizer.json and tokenizer_config.json, or a hub name"
        raise UserError(f"no tokenizer at {path!r}: {wanted} ({error})") from error


def _tokenizer_json(path: str) -> str | None:
    """The file of a folder, or of a hub name that was loaded just now; None where there is none."""
    import huggingface_hub

    if os.path.isdir(path) or path.endswith(".gguf"):
        file = os.path.join(path, "tokenizer.json")
        return file if os.path.exists(file) else None
    found = huggingface_hub.try_to_load_from_cache(path, "tokenizer.json")
    return found if isinstance(found, str) else None


def _reads_as(tokenizer, file: str) -> bool:
    written, loaded = tokenizers.Tokenizer.from_file(file), tokenizer.backend_tokenizer
    written.no_truncation()
    return all(
        written.encode(probe, add_special_tokens=False).ids == loaded.encode(probe, add_special_tokens=False).ids
        for probe in (TABLE_PROBE, *START_PROBES)
    )


def _from_pretrained(auto, path: str):
    if path.endswith(".gguf"):
        folder, _, name = path.rpartition("/")
        try:
            return auto.from_pretrained(folder or ".", gguf_file=name)
        except ImportError as error:
            raise UserError(
                f"transformers reads the tokenizer of {path} with gguf and torch, and one is not installed; install "
                "them, or name a folder with tokenizer.json"
            ) from error
    try:
        return auto.from_pretrained(path, local_files_only=True)
    except OSError:
        return auto.from_pretrained(path)


def tokenizer_fingerprint(tokenizer) -> str:
    """Returns a sha256 of vocabulary, rules, special ids and chat template; padding and truncation do not count."""
    ids = sorted(tokenizer.all_special_ids), tokenizer.eos_token_id
    parts = (_encoding(tokenizer), *ids, tokenizer.chat_template)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _encoding(tokenizer) -> str:
    """Vocabulary and rules: all that text becomes ids by."""
    backend = tokenizer.backend_tokenizer
    if backend.truncation or backend.padding:
        backend = tokenizers.Tokenizer.from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return backend.to_str()


def make_rules(settings: TextSettings, tokenizer) -> TextRules:
    """Returns the rules of `settings` for a fast transformers `tokenizer`. Raises UserError where there are none."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    guard, guard_ids = _probe_guard(tokenizer, spec, settings.tokenizer)
    fence = settings.fence == "python"
    return TextRules(
        template=settings.template,
        chat_template=_chat_template(tokenizer, settings) if settings.template == "chat" else "",
        template_kwargs=settings.template_kwargs,
        system=settings.system,
        raw_separator=settings.raw_separator,
        fence_open="```python\n" if fence else "",
        fence_close="```" if fence else "",
        eos_ids=_eos_ids(settings, tokenizer, guard, len(guard_ids)),
        unicode_form=token_bytes.unicode_form(spec),
        guard=guard,
        guard_ids=guard_ids,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
    )


def rules_from_json(stored: dict[str, Any]) -> TextRules:
    """Returns the rules whose `dataclasses.asdict` went through JSON."""
    # Records of before there were any have none.
    fields: dict[str, Any] = (
        {"template_kwargs": {}} | stored | {name: tuple(stored[name]) for name in ("eos_ids", "guard_ids")}
    )
    return TextRules(**fields)


def check_tokenizer(tokenizer, rules: TextRules, where: str) -> None:
    """Raises UserError if `tokenizer` is not the one that the rules, and so the records, were made with."""
    if tokenizer_fingerprint(tokenizer) != rules.tokenizer_fingerprint:
        raise UserError(
            f"{where}: not the tokenizer that made the records (another vocabulary, special tokens or chat template): "
            "use the copy in the dataset's folder `tokenizer`, or build the dataset anew with this one"
        )


def check_models_tokenizer(own, made, rules: TextRules, where: str) -> None:
    """Raises UserError if a model's `own` tokenizer reads text otherwise than `made`, with which the records were made.

    A base model often has no chat template: then records may be made with the tokenizer of its instruct model, which
    may also end texts with another token. A raw text has no template.
    """
    if _encoding(own) != _encoding(made):
        raise UserError(
            f"{where}: not the tokenizer that made the records (another vocabulary or other rules): build the dataset "
            "anew with --config.build.text.tokenizer set to this folder, or train the model that the tokenizer is of"
        )
    # An export carries the arguments of its own training in its template.
    known = (rules.chat_template, preset(rules.chat_template, rules.template_kwargs))
    if rules.template == "chat" and own.chat_template and own.get_chat_template() not in known:
        raise UserError(
            f"{where}: its chat template is not the one that the records were made with: build the dataset anew with "
            "--config.build.text.tokenizer set to this folder"
        )


def preset(template: str, kwargs: Mapping[str, Any]) -> str:
    """Returns a chat template in which `kwargs` are the defaults of its own variables, for whoever names none."""
    head = "".join(
        f"{{%- set {name} = {name} if {name} is defined else {value!r} -%}}\n" for name, value in kwargs.items()
    )
    return template if template.startswith(head) else head + template


def render(
    tokenizer, messages: Sequence[dict[str, str]], kwargs: Mapping[str, Any], *, add_generation_prompt: bool
) -> str:
    """Returns the chat template's text. Raises UserError if the template refuses the messages."""
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **kwargs
        )
    except jinja2.TemplateError as error:
        roles = [message["role"] for message in messages]
        raise UserError(f"the chat template refuses messages of the roles {roles}: {error}") from error


def _probe_guard(tokenizer, spec: dict[str, Any], name: str) -> tuple[str, tuple[int, ...]]:
    table = token_bytes.token_bytes(tokenizer.backend_tokenizer, spec)
    plain = token_bytes.plain_backend(spec, table)
    for guard in ("", GUARD):
        ids = plain.encode(guard, add_special_tokens=False).ids if guard else []
        if all(_starts_clean(plain, table, guard, ids, probe) for probe in START_PROBES):
            _check_table(plain, table, guard, len(ids), name)
            return guard, tuple(ids)
    raise UserError(
        f"the tokenizer at {name!r} changes the start of a text (tried {START_PROBES}): completions could not be "
        "separated from prompts; use a byte-level or SentencePiece-like tokenizer"
    )


def _starts_clean(
    plain: tokenizers.Tokenizer, table: list[bytes], guard: str, guard_ids: list[int], probe: str
) -> bool:
    ids = plain.encode(guard + probe, add_special_tokens=False).ids
    own = ids[len(guard_ids) :]
    return ids[: len(guard_ids)] == guard_ids and b"".join(table[i] for i in own) == probe.encode()


def _check_table(plain: tokenizers.Tokenizer, table: list[bytes], guard: str, skipped: int, name: str) -> None:
    ids = plain.encode(guard + TABLE_PROBE, add_special_tokens=False).ids
    decoded = plain.decode(ids, skip_special_tokens=False).removeprefix(guard)
    joined = b"".join(table[i] for i in ids[skipped:]).decode(errors="replace")
    if decoded != joined:
        raise UserError(
            f"the tokenizer at {name!r} decodes by rules that are not known here: {decoded!r} != {joined!r}"
        )
    ids = plain.encode(guard + ASCII_PROBE, add_special_tokens=False).ids
    found = b"".join(table[i] for i in ids[skipped:]).decode(errors="replace")
    if found != ASCII_PROBE:
        raise UserError(
            f"the tokenizer at {name!r} does not give plain ASCII text back, so no program either: it makes {found!r} "
            f"of {ASCII_PROBE!r}; use a tokenizer that keeps every byte"
        )


def _chat_template(tokenizer, settings: TextSettings) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            f'text.template = "chat", but the tokenizer at {settings.tokenizer!r} has no chat template: set "raw", or '
            "take the tokenizer of its instruct model (with the same vocabulary), which the exported model then gets"
        )
    template = tokenizer.get_chat_template()
    _check_kwargs(settings.template_kwargs, template, settings.tokenizer)
    system = [{"role": "system", "content": settings.system}] if settings.system else []
    messages = [*system, {"role": "user", "content": "question"}]
    render(tokenizer, messages, settings.template_kwargs, add_generation_prompt=True)
    return template


def _check_kwargs(kwargs: Mapping[str, Any], template: str, where: str) -> None:
    """Jinja takes any name in silence: one that the template does not mention would have no effect."""
    for name, value in kwargs.items():
        if name in WRITTEN:
            raise UserError(f"text.template_kwargs.{name} is written by the build itself; leave it out")
        if not name.isidentifier() or not re.search(rf"\b{name}\b", template):
            mentioned = re.findall(r"[A-Za-z_]\w*", "".join(re.findall(r"\{[{%].*?[%}]\}", template, re.DOTALL)))
            raise UserError(
                f"text.template_kwargs.{name} has no effect: the chat template of the tokenizer at {where!r} does not "
                f"mention it{did_you_mean(name, sorted(set(mentioned)))}"
            )
        if not isinstance(value, bool | int | float | str | None):
            raise UserError(f"text.template_kwargs.{name} must be a text, a number, true, false or null, not {value!r}")


def _eos_ids(settings: TextSettings, tokenizer, guard: str, skipped: int) -> tuple[int, ...]:
    if settings.eos == "none":
        return ()
    if settings.template == "chat":
        ids = _end_of_turn(tokenizer, settings.template_kwargs, guard, skipped)
        if ids:
            return ids
    if tokenizer.eos_token_id is None:
        raise UserError(
            f'text.eos = "append", but the tokenizer at {settings.tokenizer!r} has no end-of-sequence token: name one '
            'in its tokenizer_config.json (eos_token), or set text.eos = "none"'
        )
    return (tokenizer.eos_token_id,)


def _end_of_turn(tokenizer, kwargs: Mapping[str, Any], guard: str, skipped: int) -> tuple[int, ...]:
    """Returns what the template writes after an answer, up to its first special token; empty if there is none."""
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": ANSWER_PROBE}]
    _, found, tail = render(tokenizer, turns, kwargs, add_generation_prompt=False).rpartition(ANSWER_PROBE)
    if not found:
        raise UserError("the chat template does not write the assistant's answer as it is: its end cannot be found")
    backend = tokenizer.backend_tokenizer
    ids = backend.encode(guard + tail, add_special_tokens=False).ids[skipped:]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((place for place, i in enumerate(ids) if i in special), None)
    return () if end is None else tuple(ids[: end + 1])
