"""A run of an evaluation: what is stored, continued, refused, scored and reported."""

import asyncio
import contextlib
import dataclasses
import html
import itertools
import json
import re

import pytest

from iterpref_jax.codeflow.sandbox import open_sandbox
from iterpref_jax.errors import UserError
from iterpref_jax.evaluate import error_table, eval_page, eval_report, evaluation, results, samples, score_text
from iterpref_jax.evaluate.generators import Endpoint, Sampling, Wanted, Written
from iterpref_jax.evaluate.judging import Judged
from iterpref_jax.evaluate.prompts import Shown
from tests.evaluate import made


def never():
    return False


class Writer:
    """Writes `answer(task, sample)` for what it is asked, and keeps count."""

    def __init__(self, answer=lambda task, sample: "    return a + b\n"):
        self.answer, self.asked = answer, []

    def generate(self, wanted, sampling):
        for index, each in reversed(list(enumerate(wanted))):
            self.asked.append((each.task, each.sample))
            yield index, Written(text=self.answer(each.task, each.sample), finish_reason="stop")


@pytest.fixture(scope="module")
def sandbox():
    with open_sandbox(made.SANDBOX) as opened:
        yield opened


def run(
    folder, sandbox, writer, settings=None, *, rescore=False, benchmark=None, should_stop=never, python="", **limits
):
    """One command's work; returns the results, or None if it stopped."""
    settings, benchmark = settings or made.settings(), benchmark or made.benchmark()
    limited = dataclasses.replace(made.SANDBOX, **limits)
    made_with = evaluation.made_with(settings, benchmark, "writer", limited, python)
    samples.settle(folder, made_with, rescore=rescore)
    if not rescore and not evaluation.generate(settings, benchmark, lambda: writer, folder, should_stop):
        return None
    if not evaluation.judge_references(settings, benchmark, sandbox, folder, should_stop):
        return None
    counted, left_out = evaluation.counted(settings, benchmark, folder)
    if not evaluation.judge(settings, counted, sandbox, folder, should_stop):
        return None
    verdicts = samples.read_verdicts(folder / samples.VERDICTS)
    found = results.results(settings, counted, verdicts, made_with, left_out)
    results.write(folder, found)
    eval_report.write(folder, found, counted, verdicts)
    return found


def test_a_run_stores_answers_verdicts_scores_and_reports(tmp_path, sandbox):
    found = run(tmp_path, sandbox, Writer())
    assert [(score["suite"], score["k"], score["value"]) for score in found["scores"]] == [
        ("base", 1, 0.5),
        ("plus", 1, 0.5),
    ]
    assert found["pass_at_1"]["plus"] == {"made/add": 1.0, "made/less": 0.0}
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert "AssertionError" in (tmp_path / "report.md").read_text()
    assert "made/less" in (tmp_path / "report.html").read_text()


def test_a_finished_run_asks_no_model_again(tmp_path, sandbox):
    first, writer = run(tmp_path, sandbox, Writer()), Writer()
    stored = [(tmp_path / name).read_bytes() for name in ("samples.jsonl", "verdicts.jsonl")]
    assert run(tmp_path, sandbox, writer) == first
    assert writer.asked == []
    assert [(tmp_path / name).read_bytes() for name in ("samples.jsonl", "verdicts.jsonl")] == stored


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path, sandbox):
    settings = made.settings(n=3, temperature=0.8)
    first, second = Writer(), Writer()
    assert run(tmp_path, sandbox, first, settings, should_stop=lambda: len(first.asked) == 4) is None
    found = run(tmp_path, sandbox, second, settings)
    assert len(first.asked) == 4
    assert sorted(first.asked + second.asked) == [(task, sample) for task in range(2) for sample in range(3)]
    assert found["samples"] == 6


def test_a_line_that_a_killed_process_left_half_written_is_made_again(tmp_path, sandbox):
    first = run(tmp_path, sandbox, Writer())
    for name in ("samples.jsonl", "verdicts.jsonl"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-7])
    writer = Writer()
    again = run(tmp_path, sandbox, writer)
    assert len(writer.asked) == 1
    assert again == first


def test_a_half_written_line_is_cut_off_in_place(tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    evaluation.store(evaluation.canonical(made.benchmark()), tmp_path)
    whole, file = path.read_bytes(), path.stat().st_ino
    path.write_bytes(whole + b'{"task_id"')
    # Whoever writes the rows again and is killed meanwhile has lost them.
    monkeypatch.setattr(type(path), "write_bytes", lambda *words: pytest.fail("rows were written again"))
    assert len(samples.read_samples(tmp_path)) == 2
    assert (path.read_bytes(), path.stat().st_ino) == (whole, file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.5}, "temperature = 0.0, now it is 0.5; give another --out"),
        ({"max_new_tokens": 16}, "max_new_tokens = 32, now it is 16"),
        ({"compat": "evalplus-0.3.1"}, 'compat = "head", now it is "evalplus-0.3.1"; .* --score-only'),
    ],
)
def test_other_settings_are_refused_with_the_difference(changes, message, tmp_path, sandbox):
    run(tmp_path, sandbox, Writer())
    with pytest.raises(UserError, match=message):
        run(tmp_path, sandbox, Writer(), made.settings(**changes))


def test_settings_of_a_folder_that_holds_nothing_yet_are_replaced(tmp_path, sandbox):
    first, second = (
        evaluation.made_with(made.settings(), made.benchmark(), origin, made.SANDBOX) for origin in ("wrong", "writer")
    )
    samples.settle(tmp_path, first, rescore=False)
    # As a process leaves it whose model cannot be asked, or that died in its first answer.
    (tmp_path / "samples.jsonl").write_text('{"task_id": "made/a')
    assert samples.settle(tmp_path, second, rescore=False) == second
    assert run(tmp_path, sandbox, Writer())["made_with"] == second
    with pytest.raises(UserError, match='made with model = "writer", now it is "wrong"'):
        samples.settle(tmp_path, first, rescore=False)


def test_stored_samples_are_judged_anew_under_other_rules(tmp_path, sandbox):
    run(tmp_path, sandbox, Writer())
    writer = Writer()
    found = run(tmp_path, sandbox, writer, made.settings(compat="evalplus-0.3.1"), rescore=True)
    assert writer.asked == []
    assert found["made_with"]["scores"]["compat"] == "evalplus-0.3.1"


def test_results_of_verdicts_that_are_dropped_go_with_them(tmp_path, sandbox):
    run(tmp_path, sandbox, Writer())
    settings = made.settings(compat="evalplus-0.3.1")
    assert run(tmp_path, sandbox, Writer(), settings, rescore=True, should_stop=lambda: True) is None
    assert {path.name for path in tmp_path.iterdir()} == {"samples.jsonl", "settings.json"}


def test_judging_anew_goes_on_where_it_was_stopped_and_begins_anew_once_it_has_ended(tmp_path, sandbox):
    run(tmp_path, sandbox, Writer())
    settings, asked = made.settings(compat="evalplus-0.3.1"), itertools.count()
    # Asked before each answer is cleaned, and behind each verdict.
    stops = lambda: next(asked) == 2  # noqa: E731
    assert run(tmp_path, sandbox, Writer(), settings, rescore=True, should_stop=stops) is None
    first = (tmp_path / "verdicts.jsonl").read_text()
    assert first.count("\n") == 1
    run(tmp_path, sandbox, Writer(), settings, rescore=True)
    assert (tmp_path / "verdicts.jsonl").read_text().startswith(first)
    judged = (tmp_path / "verdicts.jsonl").stat().st_ino
    run(tmp_path, sandbox, Writer(), settings, rescore=True)
    assert (tmp_path / "verdicts.jsonl").stat().st_ino != judged


def test_verdicts_of_another_interpreter_are_refused_and_named(tmp_path, sandbox):
    run(tmp_path, sandbox, Writer())
    python = "/opt/other/bin/python (Python 3.10.13)"
    with pytest.raises(UserError, match=r'python = "", now it is "/opt/other.*--score-only'):
        run(tmp_path, sandbox, Writer(), python=python)
    run(tmp_path, sandbox, Writer(), python=python, rescore=True)
    assert f"| python | {python} |" in (tmp_path / "report.md").read_text()


def test_verdicts_under_other_limits_are_refused_and_named(tmp_path, sandbox):
    run(tmp_path, sandbox, Writer())
    with pytest.raises(UserError, match=r'limits = "wall_s 10\.0, .*", now it is "wall_s 2\.5, .*--score-only'):
        run(tmp_path, sandbox, Writer(), wall_s=2.5)
    # Neither another tier nor more workers are another verdict.
    run(tmp_path, sandbox, Writer(), tier="bwrap", workers=7, warm=True)
    run(tmp_path, sandbox, Writer(), rescore=True, wall_s=2.5, preload=("json", "math"))
    shown = "| limits | wall_s 2.5, cpu_s 5, memory_mb 1024, output_kb 1024, preload json math |"
    assert shown in (tmp_path / "report.md").read_text()


def with_broken_reference():
    """A benchmark of whose two tasks only the first has a published solution that passes."""
    broken = made.task("less", "-")
    canonical = broken.canonical.replace("a - b", "a.no_such")
    return made.benchmark(made.task("add", "+"), dataclasses.replace(broken, canonical=canonical))


def test_tasks_whose_reference_fails_here_are_listed_and_not_counted(tmp_path, sandbox):
    settings, benchmark = made.settings(reference_must_pass=True), with_broken_reference()
    found = run(tmp_path, sandbox, Writer(), settings, benchmark=benchmark)
    assert (found["tasks"], found["pass_at_1"]["plus"]) == (1, {"made/add": 1.0})
    assert found["left_out"].keys() == {"made/less"}
    assert found["left_out"]["made/less"]["error_type"] == "AttributeError"
    assert score_text.score_lines(found)[0].startswith("made base pass@1: 100.0% [100.0, 100.0] (1 of 2 tasks, 1 sam")
    for name in ("report.md", "report.html"):
        assert "Left out: the published solution of 1 tasks does not pass here" in (tmp_path / name).read_text()
    everything = run(tmp_path / "all", sandbox, Writer(), benchmark=benchmark)
    assert (everything["tasks"], everything["left_out"]) == (2, {})


def test_references_are_judged_once_and_again_with_score_only(tmp_path, sandbox):
    settings, benchmark = made.settings(reference_must_pass=True), with_broken_reference()
    first = run(tmp_path, sandbox, Writer(), settings, benchmark=benchmark)
    stored = (tmp_path / samples.REFERENCES).read_bytes()
    assert run(tmp_path, sandbox, Writer(), settings, benchmark=benchmark) == first
    assert (tmp_path / samples.REFERENCES).read_bytes() == stored
    (tmp_path / samples.REFERENCES).write_text(stored.decode().replace("AttributeError", "Stale"))
    assert (
        run(tmp_path, sandbox, Writer(), settings, benchmark=benchmark, rescore=True)["left_out"] == first["left_out"]
    )


def test_where_no_reference_passes_the_environment_is_to_blame(tmp_path, sandbox):
    benchmark = made.benchmark(with_broken_reference().tasks[1])
    with pytest.raises(
        UserError, match=r"no published solution passes here \(made/less: AttributeError.*sandbox.python"
    ):
        run(tmp_path, sandbox, Writer(), made.settings(reference_must_pass=True), benchmark=benchmark)


def test_scores_need_a_verdict_of_every_task(tmp_path, sandbox):
    run(tmp_path, sandbox, Writer())
    kept = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)[:1]
    (tmp_path / "samples.jsonl").write_text("".join(kept))
    with pytest.raises(UserError, match="1 tasks have no verdict, the first made/add"):
        run(tmp_path, sandbox, Writer(), rescore=True)


def test_pass_at_k_is_told_for_the_k_that_every_task_reaches(tmp_path, sandbox):
    settings = made.settings(n=2, temperature=0.8, pass_at=(1, 2, 10))
    found = run(tmp_path, sandbox, Writer(lambda task, sample: f"    return a {'+-'[sample]} b\n"), settings)
    base = {score["k"]: score["value"] for score in found["scores"] if score["suite"] == "base"}
    assert base == {1: 0.5, 2: 1.0}


def test_samples_of_a_file_are_taken_as_whole_programs_or_behind_the_prompt(tmp_path, sandbox):
    benchmark = made.benchmark()
    rows = [
        {"task_id": "made/add", "solution": benchmark.tasks[0].canonical},
        {"task_id": "made/less", "completion": "    return a - b\n"},
        {"task_id": "made/less", "completion": "    return a\n"},
    ]
    path = made.write_lines(tmp_path / "given.jsonl", rows)
    evaluation.store(evaluation.read_stored(made.settings(), benchmark, str(path)), tmp_path)
    evaluation.judge(made.settings(), benchmark, sandbox, tmp_path, never)
    passed = {
        key: verdict.judged.passes("plus")
        for key, verdict in samples.read_verdicts(tmp_path / samples.VERDICTS).items()
    }
    assert passed == {("made/add", 0): True, ("made/less", 0): True, ("made/less", 1): False}


OWN = {"task_id": "made/add", "sample": 0, "text": "x = 1", "form": "answer", "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task_id": "made/add", "solution": "x"}], "no sample of 1 tasks, the first made/less"),
        ([{"task_id": "made/mul", "solution": "x"}], "'made/mul' is not in made.jsonl"),
        ([{"task_id": "made/add", "code": "x"}], "line 1: wanted 'solution' or 'completion'"),
        ([OWN, OWN | {"finish": "stop"}], "given.jsonl, line 2: unknown field 'finish'; did you mean 'finish_reason'"),
        ([{**OWN, "form": "program"}], "line 1: the field 'form' must be one of answer, completion, solution, not 'pr"),
        ([{**OWN, "text": None}], "line 1: the field 'text' must be a string, not null"),
        ([{k: OWN[k] for k in ("task_id", "text", "form")}], "line 1: the field 'finish_reason' is missing"),
    ],
)
def test_a_file_of_samples_that_does_not_fit_is_refused(rows, message, tmp_path):
    path = made.write_lines(tmp_path / "given.jsonl", rows)
    with pytest.raises(UserError, match=message):
        evaluation.read_stored(made.settings(), made.benchmark(), str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 4}, "would be 4 equal answers"),
        ({"compat": "evalplus"}, "did you mean 'evalplus-0.3.1'"),
        ({"pass_at": (10,)}, r"pass@k needs k answers a task, evaluate.n is 1"),
        ({"draws": 0}, "evaluate.draws must be at least 1"),
        ({"prompt_style": "evalplus-vlm"}, "evaluate.prompt_style: 'evalplus-vlm' is not known; did you mean"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        made.settings(**changes)


def test_errors_are_counted_once_a_task_and_class_with_quoted_names_replaced():
    verdicts = [
        made.verdict("a", "NameError", "name 'foo' is not defined"),
        made.verdict("a", "NameError", "name 'bar' is not defined", sample=1),
        made.verdict("b", "NameError", "name 'foo' is not defined"),
        made.verdict("b", "TypeError", "can't add", sample=1),
        made.verdict("c"),
    ]
    first, second = error_table.error_classes(verdicts)
    assert (first.name, first.tasks, first.samples, first.tests) == ("NameError", 2, 3, 6)
    assert (first.message, first.message_samples) == ("name 'X' is not defined", 3)
    assert (second.name, second.tasks) == ("TypeError", 1)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("can't multiply sequence by non-int of type 'str'", "can't multiply sequence by non-int of type 'X'"),
        ("module \"a\" has no attribute 'b'\nmore", "module 'X' has no attribute 'X'"),
        ("'int' object isn't iterable, it doesn't", "'X' object isn't iterable, it doesn't"),
    ],
)
def test_an_apostrophe_is_no_quote(message, expected):
    assert error_table.normalised(message) == expected


def test_a_task_is_found_on_the_page_by_every_class_of_its_errors(tmp_path, sandbox):
    found = run(tmp_path, sandbox, Writer())
    verdicts = samples.read_verdicts(tmp_path / samples.VERDICTS)
    (failed,) = verdicts["made/less", 0].judged.outcomes
    both = dataclasses.replace(failed, failing={"AssertionError": 1, "KeyError": 2})
    verdict = dataclasses.replace(verdicts["made/less", 0], judged=Judged(outcomes=(both,), tier="bwrap"))
    page = eval_page.render(found, {"made/add": [], "made/less": [verdict]}, made.benchmark())
    listed = re.findall(r'data-classes="([^"]*)"', page)
    assert [json.loads(html.unescape(text)) for text in listed] == [[], ["AssertionError", "KeyError"]]


def test_a_page_escapes_what_programs_and_models_wrote(tmp_path, sandbox):
    run(tmp_path, sandbox, Writer(lambda task, sample: "    return '<script>alert(1)</script>' + (a - 1)\n"))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script>") == 1
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_colours_change_nothing_of_a_program():
    code = "\n\nx = '<&>'\t# é\n\n\n"
    assert html.unescape(re.sub(r"<[^>]*>", "", eval_page.highlighted(code))) == code


def test_a_page_without_pygments_is_escaped_all_the_same(monkeypatch):
    monkeypatch.setattr(eval_page.importlib.util, "find_spec", lambda name: None)
    assert eval_page.highlighted("a < b") == "a &lt; b"
    assert eval_page.code_style() == ""


def test_a_score_is_printed_with_how_it_was_made(tmp_path, sandbox):
    line = score_text.score_lines(run(tmp_path, sandbox, Writer()))[0]
    assert line == "made base pass@1: 50.0% [0.0, 100.0] (2 tasks, 2 samples; base, compat head)"


def test_an_endpoint_is_asked_for_so_many_answers_at_a_time():
    running = most = 0

    async def ask(wanted, sampling):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 * (3 - wanted.sample))
        running -= 1
        return Written(text=f"{wanted.task}/{wanted.sample}", finish_reason="stop")

    @contextlib.asynccontextmanager
    async def opened():
        yield ask

    shown = Shown(text="x", messages=(), prefill="", stops=())
    wanted = [Wanted(shown=shown, task_id="t", task=task, sample=sample) for task in range(3) for sample in range(2)]
    sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=4, seed=0)
    found = dict(Endpoint(opened, concurrency=2).generate(wanted, sampling))
    assert [found[i].text for i in range(6)] == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]
    assert most == 2
