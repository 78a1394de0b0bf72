"""HumanEval+ and MBPP+ (Liu et al. 2023, Apache-2.0), as EvalPlus publishes them and in their OriginFmt.

EvalPlus' own files hold inputs and a reference whose outputs are the wanted ones, so base and plus are told apart.
OriginFmt files hold a script of assertions instead: HumanEval+'s mixes both, so it has the suite `plus` alone.
"""

from __future__ import annotations

from typing import Any

from iterpref_jax.errors import UserError
from iterpref_jax.evaluate.benchmarks import human_eval, mbpp
from iterpref_jax.evaluate.benchmarks.file import Choice, Source, benchmark_of, read
from iterpref_jax.evaluate.benchmarks.mbpp_inputs import restored
from iterpref_jax.evaluate.stops import BASE, HUMAN_EVAL, MBPP
from iterpref_jax.evaluate.tasks import Benchmark, CallTests, Limits, Prompts, ScriptTests, Suite, Task

COLUMNS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
# EvalPlus: 60 s for all inputs of a suite, and a little more. HumanEval/130 answers with lists of 15 MB.
LIMITS = Limits(wall_s=62.0, cpu_s=62, memory_mb=4096, output_kb=32 << 10)
# Entry point -> what replaces the comparison: EvalPlus 0.3.1, `_special_oracle.py`.
HUMAN_EVAL_ORACLES = {"find_zero": "root"}
MBPP_ORACLES = {
    "are_equivalent": "anything",
    "sum_div": "or_zero",
    "surface_Area": "surface_area",
    "digit_distance_nums": "digit_distance",
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "not_none"),
    **dict.fromkeys(
        (
            "similar_elements",
            "find_char_long",
            "common_in_nested_lists",
            "extract_singly",
            "larg_nnum",
            "intersection_array",
            "find_dissimilar",
            "Diff",
        ),
        "set",
    ),
}
SLOW_599 = "its canonical solution takes longer than the limit on slow machines"
ROOT_32 = "its published test takes the root, a number, for a list of arguments"


def read_human_eval(source: Source, choice: Choice) -> Benchmark:
    """Reads HumanEvalPlus.jsonl, or HumanEvalPlus-OriginFmt.jsonl."""
    del choice
    tasks, exceptions = [], {}
    for place, row in read(source, COLUMNS[:4]):
        if "plus_input" in row:
            suites = _called(row, row["base_input"], row["plus_input"], HUMAN_EVAL_ORACLES)
        else:
            suites = (Suite(name="plus", tests=human_eval.checked(_with_test(row, place))),)
            exceptions = {"HumanEval/32": ROOT_32}
        tasks.append(_task(row["task_id"], row["prompt"], row, suites))
    return _benchmark(source, tasks, BASE + HUMAN_EVAL, exceptions)


def read_mbpp(source: Source, choice: Choice) -> Benchmark:
    """Reads MbppPlus.jsonl, or MbppPlus-OriginFmt.jsonl (whose prompts are made as EvalPlus makes them)."""
    del choice
    tasks = []
    for place, row in read(source, ("task_id", "prompt")):
        tasks.append(_mbpp_task(row) if "plus_input" in row else _origin_task(_with_test(row, place)))
    return _benchmark(source, tasks, BASE + MBPP, {"Mbpp/599": SLOW_599})


def _mbpp_task(row: dict[str, Any]) -> Task:
    number = int(row["task_id"].split("/")[-1])
    base, plus = (restored(number, row[column]) for column in ("base_input", "plus_input"))
    return _task(row["task_id"], row["prompt"], row, _called(row, base, plus, MBPP_ORACLES))


def _origin_task(row: dict[str, Any]) -> Task:
    setup = "\n".join(row["test_imports"]) + "\n" if row["test_imports"] else ""
    base = ScriptTests(setup=setup, tests="\n".join(row["test_list"]) + "\n")
    plus = ScriptTests(setup=setup, tests=row["test"])
    prompt = mbpp.docstring(row["prompt"], row["test_list"][0])
    return Task(
        task_id=f"Mbpp/{row['task_id']}",
        prompts=Prompts(code=prompt, request=prompt),
        entry_point=mbpp.called_name(row["test_list"][0], row["code"]),
        canonical=row["code"],
        suites=(Suite(name="base", tests=base), Suite(name="plus", tests=plus)),
    )


def _called(row: dict[str, Any], base: list, plus: list, oracles: dict[str, str]) -> tuple[Suite, ...]:
    reference, name = row["prompt"] + row["canonical_solution"], row["entry_point"]
    return tuple(
        Suite(
            name=suite,
            tests=CallTests(
                entry_point=name,
                reference=reference,
                inputs=tuple(tuple(args) for args in inputs),
                atol=row["atol"],
                oracle=oracles.get(name, ""),
            ),
        )
        # Where nothing was added the score of plus is that of base.
        for suite, inputs in (("base", base), ("plus", plus or base))
    )


def _task(task_id: str, prompt: str, row: dict[str, Any], suites: tuple[Suite, ...]) -> Task:
    return Task(
        task_id=task_id,
        prompts=Prompts(code=prompt, request=prompt),
        entry_point=row["entry_point"],
        canonical=prompt + row["canonical_solution"],
        suites=suites,
    )


def _with_test(row: dict[str, Any], place: str) -> dict[str, Any]:
    if "test" not in row:
        raise UserError(f"{place}: neither 'plus_input' nor 'test' is there; is this EvalPlus' file?")
    return row


def _benchmark(source: Source, tasks: list[Task], stops: tuple[str, ...], exceptions: dict[str, str]) -> Benchmark:
    return benchmark_of(
        source,
        tasks,
        stops=stops,
        max_new_tokens=768,
        clean="evalplus",
        limits=LIMITS,
        exceptions=exceptions,
    )
