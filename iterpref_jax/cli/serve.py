"""`iterpref serve`: an OpenAI-compatible endpoint over a model folder, or over a checkpoint of a run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence

from iterpref_jax import settings
from iterpref_jax.cli import model, options
from iterpref_jax.data.token_bytes import token_bytes
from iterpref_jax.errors import UserError
from iterpref_jax.progress import say
from iterpref_jax.serve.prompts import Prompts
from iterpref_jax.serve.scheduler import Scheduler
from iterpref_jax.train import compile_cache


def main(argv: Sequence[str]) -> None:
    chosen, overrides = options.parse(_arguments(), argv)
    config = model.load_config(chosen, overrides)
    shapes, limits = settings.read_section(config, "decode"), settings.read_section(config, "serve")
    compile_cache.enable(settings.read_section(config, "compile"))
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'`iterpref serve` needs {" and ".join(missing)}: pip install "iterpref_jax[serve]"')
    from iterpref_jax.serve import app, server

    with server.bind(chosen.host, chosen.port) as bound:
        opened = model.open_model(chosen, config, overrides)
        tokenizer, sampler = opened.tokenizer, opened.sampler(shapes)
        scheduler = Scheduler(sampler, slots=shapes.slots, max_waiting=limits.max_waiting)
        prompts = Prompts(tokenizer, context=shapes.context, vocab_size=opened.decoder.config.vocab_size)
        backend = tokenizer.backend_tokenizer
        table = token_bytes(backend, json.loads(backend.to_str()))
        name = chosen.served_model_name or opened.name
        bound.listen()
        say(f"{server.url(bound)} serves {name!r} ({opened.origin}): {shapes.slots} slots of {shapes.context} tokens")
        try:
            server.run(app.make_app(scheduler, prompts, table, name), bound, grace_s=limits.grace_s)
        finally:
            # The end of the app has done it, unless the server failed before.
            scheduler.close()


def _arguments():
    arguments = options.parser("serve", __doc__)
    options.add_config(arguments)
    model.add_model(arguments)
    arguments.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: this machine alone)")
    arguments.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    arguments.add_argument(
        "--served-model-name", default="", metavar="NAME", help="what requests call it (default: the folder's name)"
    )
    return arguments
