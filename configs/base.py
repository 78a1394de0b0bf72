"""Every field of every command, once, with its default. Experiments copy this and change a few lines.

    from configs import base

    def get_config(arg: str = ""):
        options = base.parse_arg(arg, tiny=False)
        config = base.get_config()
        config.model.path = "Qwen/Qwen2.5-Coder-7B"
        return base.make_tiny(config) if options.tiny else config

Override any field on the command line: `--config.objective.link.beta=0.2`. `FILE.py:tiny` shrinks any config to
something that a laptop runs in a minute.
"""

from __future__ import annotations

import difflib
import types

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    options = parse_arg(arg, tiny=False)
    config = ml_collections.ConfigDict()
    # One seed for everything that is drawn: pairs, splits, shuffles, mutations, initial weights, hybrid's coin.
    config.seed = 0

    config.inject = inject = ml_collections.ConfigDict()
    inject.histories_per_task = 6
    inject.max_bugs = 3
    inject.seed = config.get_oneway_ref("seed")

    config.imports = imports = ml_collections.ConfigDict()
    imports.max_solutions = 8  # of one task with many programs: so many right ones, wrong ones and samples are run
    imports.max_cases = 50  # inputs and outputs that judge a program; the first ones, public before private

    config.sandbox = sandbox = ml_collections.ConfigDict()
    sandbox.tier = "auto"  # the strongest that holds here: bwrap+cgroup, bwrap, landlock, rlimit
    # The rlimit tier stops accidents, not attacks: say True only for code that you would run yourself.
    sandbox.allow_unsafe = False
    # Of one program. Under `iterpref eval` the limits of EvalPlus, BigCodeBench and LiveCodeBench count where they are
    # more.
    sandbox.wall_s = 10.0
    sandbox.cpu_s = 5
    sandbox.memory_mb = 1024
    sandbox.output_kb = 1024
    sandbox.workers = 2
    sandbox.warm = True  # interpreters that are forked, not started, where that isolates as well; else says why not
    sandbox.preload = ()  # modules that they have imported beside the standard library's usual ones, such as "numpy"
    # The interpreter that programs and tests run in, with its packages, such as "/opt/bigcodebench/bin/python" (CPython
    # 3.10 or newer); empty = the one that runs this.
    sandbox.python = ""

    config.endpoint = endpoint = ml_collections.ConfigDict()
    endpoint.base_urls = ("http://127.0.0.1:8000/v1",)  # servers of the same model; who has least to do is asked
    endpoint.model = ""  # as the server names it
    endpoint.api_key_env = "OPENAI_API_KEY"  # the environment variable that holds the key; unset = no key
    # Fields of the server's own, sent with every request and part of every answer's key, such as top_k, min_p,
    # repetition_penalty or chat_template_kwargs (vLLM).
    endpoint.extra = ml_collections.ConfigDict()
    endpoint.concurrency = 64  # requests at a time, at most; a server that is overloaded is asked less
    endpoint.requests_per_minute = 0  # 0 = no limit
    endpoint.tokens_per_minute = 0  # prompt + completion; 0 = no limit
    endpoint.request_s = 600.0  # the longest that one request may take
    endpoint.stall_s = 120.0  # the longest without a byte
    endpoint.tries = 6  # of one ask, whose failures are its own; then it is dropped and counted
    endpoint.backoff_s = 0.5  # bound of the random pause before the first retry; doubled for each further one
    endpoint.backoff_max_s = 30.0
    endpoint.break_after = 5  # failures in a row; the server then gets one request now and then, until one succeeds
    endpoint.give_up_s = 600.0  # without an answer from any server; then the command ends, and can be started again
    endpoint.reasks = 1  # of an answer that cannot be read, with the reason
    endpoint.usd_per_million_prompt = 0.0  # prices, in USD per million tokens
    endpoint.usd_per_million_completion = 0.0
    # Limits over all runs with one journal; no call is sent that could pass one. 0 = none.
    endpoint.budget_usd = 0.0
    endpoint.max_calls = 0
    endpoint.max_total_tokens = 0

    config.generate = generate = ml_collections.ConfigDict()
    generate.seed = config.get_oneway_ref("seed")
    generate.tasks = 100  # drawn from features, unless --tasks names a file
    generate.features = ""  # a feature tree (JSON); empty = the one in the package
    generate.features_per_task = 4
    generate.feature_temperature = 2.0  # 1 = as often as in real programs; above it rare features come more often
    generate.evolve_rounds = 0  # questions to the model for more features, before the tasks
    generate.chat = True  # False: a base model, which goes on with few-shot prompts (the completions endpoint)
    generate.prompts = ""  # a folder of edited copies of iterpref_jax/codeflow/generate/{prompts,base_prompts}/*.txt
    generate.test_style = "script"  # of tests that the model writes: unittest, pytest
    generate.min_checks = 5  # in such tests
    generate.max_refinements = 5  # repairs of a program that fails
    generate.temperature = 0.8
    generate.top_p = 0.95
    generate.max_tokens = 2048  # of an answer
    generate.judge_temperature = 0.0
    generate.min_coverage = 0.8  # of the lines of the passing program, by its tests; 0 = not looked at
    generate.min_test_score = 3  # of 5, each of the three scores that the model gives tests; 0 = not asked
    generate.judge_pairs = True  # the model says, in both orders, whether the sides differ in logic

    config.build = build = ml_collections.ConfigDict()
    build.seed = config.get_oneway_ref("seed")
    build.eval_fraction = 0.05  # of the tasks, never of the rows
    build.max_prompt_tokens = 1024
    build.max_tokens = 2048  # prompt + longer completion; longer pairs are dropped and counted, never cut
    build.shard_pairs = 8192
    build.workers = 2  # processes; 0 = none beside the main one
    build.pairs = pairs = ml_collections.ConfigDict()
    pairs.choose = "random"  # first, last, all
    pairs.max_per_task = 0  # 0 = no cap
    pairs.seed = config.get_oneway_ref("seed")
    build.focus = focus = ml_collections.ConfigDict()
    focus.mode = "line"  # token, prefix_suffix, augment
    focus.empty = "drop"  # keep, anchor
    focus.seed = config.get_oneway_ref("seed")
    build.filters = filters = ml_collections.ConfigDict()
    filters.max_focus_lines = 20  # 0 = any
    filters.drop_comment_focus = True
    filters.drop_same_ast = True
    filters.drop_duplicates = True
    filters.benchmarks = ()  # files; pairs that share `ngram` words in a row with one of them are dropped
    filters.ngram = 10
    build.text = text = ml_collections.ConfigDict()
    text.tokenizer = ""  # a folder or hub name
    text.template = "chat"  # raw
    text.template_kwargs = ml_collections.ConfigDict()  # what the chat template reads beside the messages
    text.system = ""  # the system message; empty = the template's own
    text.fence = "python"  # how bare programs are wrapped; none
    text.eos = "append"  # none
    text.raw_separator = "\n"  # between prompt and program in the raw template

    config.data = data = ml_collections.ConfigDict()
    data.path = ""  # the folder that `iterpref build` wrote
    data.pipeline = pipeline = ml_collections.ConfigDict()
    pipeline.threads = 4
    pipeline.prefetch = 4  # steps
    pipeline.workers = 0  # > 0: processes instead of threads

    config.model = model = ml_collections.ConfigDict()
    model.path = ""  # a Hugging Face folder
    model.init = ml_collections.ConfigDict()  # or a config.json in the making, to start from random weights
    model.param_dtype = "float32"
    model.compute = compute = ml_collections.ConfigDict()
    # GPUs and TPUs compute float32 products in fewer bits than float32, unless JAX_DEFAULT_MATMUL_PRECISION=highest.
    compute.compute_dtype = "bfloat16"
    # What the backward pass finds of the forward pass. full: only what goes into each layer. none: everything. Between
    # them: save_attention, save_mlp, save_attention_mlp, save_products (every product: the fastest on a GPU). In the
    # host's memory: offload (full), offload_attention, offload_mlp, offload_attention_mlp.
    compute.remat = "full"
    compute.attention = "auto"
    compute.logits_mb = 512  # a device: if all logits fit, the backward pass reads them; else it makes them again

    model.lora = lora = ml_collections.ConfigDict()
    lora.rank = 0  # 0 = no adapters: every parameter is trained
    lora.alpha = 16.0  # adapters are scaled by alpha / rank
    lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    lora.quantize = ""  # how the kernels under adapters are stored: nf4, int8; empty = as param_dtype

    config.rows = rows = ml_collections.ConfigDict()
    rows.layout = "shared"  # separate, tree
    rows.truncate = True
    rows.tokens = 4096
    # Shorter where that fills microbatches better: each step takes one of so many lengths, and each length is a program
    # to compile; further ones are left out where a run is too short for them to pay. 0 = exactly so long.
    rows.lengths = 3
    rows.targets = 0  # 0 = from the data
    rows.pairs = 0  # 0 = from the data
    rows.rows_per_microbatch = 0  # a multiple of mesh.data x mesh.fsdp x mesh.expert; 0 = just that, one a device

    config.objective = objective = ml_collections.ConfigDict()
    objective.recipe = "target_rpo"
    objective.alpha = 1.0  # weight of NLL(y+); 0 for recipes without it
    objective.nll_norm = "example"  # token, sum
    objective.router_aux_loss_coef = 0.0  # of a mixture of experts: weight of the router's load-balancing loss
    objective.link = link = ml_collections.ConfigDict()
    link.name = "sigmoid"
    link.beta = 0.1
    # A number that the link does not read must stay 0.
    link.label_smoothing = 0.0
    link.simpo_gamma = 0.0
    link.dpop_lambda = 0.0
    link.discopop_tau = 0.0

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 1e-5
    optimizer.schedule = "cosine"  # linear, constant
    optimizer.warmup = 0.03  # of the steps; as in transformers the very first update has rate 0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-8
    optimizer.weight_decay = 0.0
    optimizer.clip_norm = 1.0  # 0 = no clipping
    optimizer.state_dtype = "float32"  # of AdamW's moments; bfloat16 (rounded by chance, the same on every resume)
    optimizer.master = False  # with bfloat16 parameters: float32 copies are updated; without, rounded by chance
    optimizer.offload = False  # moments and master copies lie in the host's memory

    config.train = train = ml_collections.ConfigDict()
    train.global_batch = 128  # pairs, whatever the layout
    train.epochs = 3.0
    train.steps = 0  # instead of epochs
    train.eval_every = 50  # updates; before the first and after the last one as well; 0 = never
    train.checkpoint_every = 100
    train.keep_checkpoints = 2  # the newest ones
    # And the best one by a held-out metric, such as focus/accuracies; -NAME: less is better, +NAME: more. Empty = none.
    train.keep_best = ""
    train.accumulate_dtype = "float32"  # of the sum of gradients over the microbatches of an update; bfloat16

    config.reference = reference = ml_collections.ConfigDict()
    reference.path = ""  # empty = WORKDIR/reference
    reference.pairs_per_part = 512
    reference.rows_per_microbatch = 0  # at most; 0 = four times those of training: a forward pass keeps less

    config.profile = profile = ml_collections.ConfigDict()
    profile.steps = ""  # updates of which an XProf trace is written to WORKDIR/profile: 10:13 is 10, 11 and 12

    config.log = log = ml_collections.ConfigDict()
    log.wandb_project = ""  # metrics go to this project of Weights & Biases as well (pip install .[wandb]); empty = no

    config.compile = compiling = ml_collections.ConfigDict()
    compiling.cache = "auto"  # the folder of compiled programs; auto = in the user's cache folder, empty = none
    compiling.xla_flags = "auto"  # the table in parallel/xla_flags.py; none = only those of XLA_FLAGS, LIBTPU_INIT_ARGS

    # For `iterpref plan` alone. What a dataset or the model's own folder says goes before what is said here.
    config.plan = plan = ml_collections.ConfigDict()
    plan.model = ml_collections.ConfigDict()  # config.json of model.path, for a plan without the model's files
    plan.pairs = 100_000  # of an epoch
    plan.pair = pair = ml_collections.ConfigDict()  # tokens
    pair.prompt = 300
    pair.completion = 724
    pair.common = 300  # with which both completions begin
    pair.focus_end = 420
    pair.focus = 24
    # Parts of the data sheets' figures that a step is taken to reach; assumed, not measured.
    plan.efficiency = efficiency = ml_collections.ConfigDict()
    efficiency.compute = 0.6
    efficiency.memory = 0.8
    efficiency.links = 0.8
    efficiency.network = 0.8

    config.decode = decode = ml_collections.ConfigDict()
    decode.slots = 16  # completions that run together; a multiple of mesh.data x mesh.fsdp x mesh.expert
    # The most tokens of a prompt and its completion; more than generate.max_tokens, which rounds and serve answer with.
    # The cache is allocated whole: slots x context x layers x key/value heads x head dim x 4 bytes (bfloat16).
    decode.context = 4096
    decode.chunk = 16  # decoding steps between two looks at the results
    decode.prefill_tokens = 512  # prompts are computed together up to so many tokens

    config.evaluate = evaluate = ml_collections.ConfigDict()
    evaluate.prompt_style = "base"  # evalplus-vllm, evalplus-openai, chat (the benchmark's own messages), raw
    evaluate.compat = "head"  # evalplus-0.3.1: calls have at least 1 s instead of 4, HumanEval/32 always fails
    evaluate.n = 1  # answers a task
    evaluate.temperature = 0.0  # 0 = greedy
    evaluate.top_p = 1.0  # EvalPlus samples with 0.95
    evaluate.max_new_tokens = 0  # 0 = the benchmark's own; prompt and answer must fit in decode.context
    evaluate.seed = config.get_oneway_ref("seed")  # of the answers, and of the bootstrap
    evaluate.split = "complete"  # BigCodeBench's prompts: or instruct
    evaluate.since = ""  # LiveCodeBench's problems from this date on, such as 2024-08-01; empty = all
    evaluate.until = ""  # and up to this one, included
    evaluate.limit = 0  # the first tasks of the file alone; 0 = all
    evaluate.shots = ""  # LiveCodeBench, style base: the folder of its func.json and stdin.json
    # Tasks whose published solution does not pass here are listed, not counted: BigCodeBench in another environment.
    evaluate.reference_must_pass = False
    evaluate.pass_at = (1, 10, 100)  # the k of pass@k, those that n reaches
    evaluate.draws = 2000  # of the bootstrap

    config.serve = serve = ml_collections.ConfigDict()
    serve.max_waiting = 256  # completions, beside those that run; more are refused
    serve.grace_s = 10  # for running requests, when the server is told to end

    config.rounds = rounds = ml_collections.ConfigDict()
    rounds.count = 3
    # The command of another server than our own: "vllm serve {model} --port {port} --served-model-name {name}"
    rounds.serve = ""
    rounds.start_s = 1800.0  # until the server answers

    config.hosts = hosts = ml_collections.ConfigDict()
    hosts.start_timeout_s = 300  # for all processes to come
    hosts.vanished_after_s = 60  # without a sign of life of one process the others end, at most a tenth later

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = 1  # replicas of the parameters; a multiple of the slices of TPUs
    mesh.fsdp = -1  # the devices that are left
    mesh.expert = 1  # splits the experts of a mixture
    mesh.sequence = 1  # splits the tokens of a row
    mesh.tensor = 1
    return make_tiny(config) if options.tiny else config


def make_tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Shrinks any config to random weights of a small model and short rows; data and objective stay as they are."""
    # It may follow model.path, which is emptied next; assigned, it stays.
    config.build.text.tokenizer = config.build.text.tokenizer
    config.model.path = ""
    config.model.init = tiny_shape()
    # A tokenizer of its own has a plain template, if any.
    config.build.text.template_kwargs = ml_collections.ConfigDict()
    # The tiny shape has no experts.
    config.objective.router_aux_loss_coef = 0.0
    config.model.compute.compute_dtype = "float32"
    config.rows.tokens = 1024
    config.rows.rows_per_microbatch = 8
    config.train.global_batch = 16
    config.train.epochs = 0.0
    config.train.steps = 6
    config.train.eval_every = 3
    config.train.checkpoint_every = 3
    config.optimizer.learning_rate = 1e-3
    config.build.max_prompt_tokens = 400
    config.build.max_tokens = 700
    config.build.eval_fraction = 0.2
    return config


def tiny_shape() -> ml_collections.ConfigDict:
    """A Qwen2 of 2 layers; vocab_size 0 means the tokenizer's."""
    return ml_collections.ConfigDict(
        dict(
            model_type="qwen2",
            vocab_size=0,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_theta=10000.0,
            tie_word_embeddings=True,
        )
    )


def parse_arg(arg: str, **options) -> types.SimpleNamespace:
    """Parses the text behind `FILE.py:`, such as `tiny` or `tiny,steps=3`, against options with their defaults.

    Raises:
        ValueError: a word that is no option (with the closest one), or a value of another type than the default.
    """
    found = dict(options)
    for word in filter(None, arg.split(",")):
        name, equals, text = word.partition("=")
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown option {name!r}, known: {', '.join(options)}{hint}")
        default = options[name]
        if isinstance(default, bool):
            if text not in ("", "True", "False"):
                raise ValueError(f"option {name!r} is a switch; write {name} or {name}=False")
            found[name] = text != "False"
        elif not equals:
            raise ValueError(f"option {name!r} needs a value: {name}={default}")
        else:
            found[name] = type(default)(text)
    return types.SimpleNamespace(**found)
