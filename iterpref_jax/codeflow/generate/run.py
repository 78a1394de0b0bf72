"""The whole of CodeFlow in one folder: tasks, programs, verdicts, trajectories, pairs, and a report on them.

Every answer and verdict is in the journal before it is used, so a run that was ended in any way goes on with the same
command, pays nothing twice and ends with the same files. What a changed setting does not touch is used again too.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from iterpref_jax.atomic import replace_text
from iterpref_jax.codeflow import records, rows
from iterpref_jax.codeflow.endpoint import (
    AskFailed,
    BudgetSpent,
    EndpointSettings,
    Journal,
    MalformedAnswer,
    open_client,
)
from iterpref_jax.codeflow.endpoint.asks import canonical
from iterpref_jax.codeflow.generate import features, judge, lanes, prompts, report, tasks
from iterpref_jax.codeflow.generate.debug import Solver
from iterpref_jax.codeflow.generate.outcome import ASK_FAILED, OPEN, Outcome
from iterpref_jax.codeflow.generate.settings import RunSettings
from iterpref_jax.codeflow.generate.verdicts import Judge, Verdicts
from iterpref_jax.codeflow.generate.writer import Writer
from iterpref_jax.codeflow.sandbox import SandboxSettings
from iterpref_jax.errors import UserError
from iterpref_jax.progress import progress, say, warn

JOURNAL, FEATURES, OUTCOMES = "journal.sqlite", "features.json", "outcomes.jsonl"
TRAJECTORIES, PAIRS = "trajectories.jsonl", "pairs.jsonl"
OUTCOME = "outcome"
Value = TypeVar("Value")
# What of the settings changes no outcome: it may differ between two starts in one folder.
_FREE = ("tasks", "judge_pairs", "prompts", "features")


class Run:
    """One start of `iterpref generate` in its folder."""

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        endpoint: EndpointSettings,
        limits: SandboxSettings,
        journal: Journal,
        sandbox: Judge,
    ):
        self._folder, self._settings, self._endpoint, self._limits = folder, settings, endpoint, limits
        self._journal, self._sandbox = journal, sandbox
        self._prompts = prompts.load(settings.generate.prompts, chat=settings.generate.chat)
        self._judged_by = _digest(self._what_changes_outcomes())
        # Of this start: what must not be kept, for the next start may do better.
        self._open: dict[str, Outcome] = {}
        self._spent: BudgetSpent | None = None
        # Tasks of all shards together.
        self._of_tasks = 0

    def go(self, tasks_file: str) -> report.Report:
        """Does what is left to do and writes the folder's files; `tasks_file` "" draws tasks from features.

        Raises:
            BudgetSpent: after the files were written of what is finished.
            KeyboardInterrupt: on Ctrl-C; all that was paid is in the journal.
            UserError: bad input, a server that refuses, no server that answers; after the files were written, that
                no task at all could be asked for.
        """
        # What writes files stays out of the event loop, in which Ctrl-C waits for the end of a turn.
        seeds = self._asking(lambda writer: self._solved(tasks_file, writer))
        self._write_outcomes(seeds)
        kept, dropped = self._pairs(seeds)
        made = report.make(
            (outcome for _, outcome in self._outcomes(seeds)),
            kept,
            dropped,
            report.bills_of(self._journal),
            self._about(seeds),
        )
        report.write(self._folder, made)
        if self._spent is not None:
            raise self._spent
        if made["about"]["tasks"] and made["ends"].get(ASK_FAILED) == made["about"]["tasks"]:
            first = next(iter(self._open.values()))
            raise UserError(
                f"the endpoint failed every one of {made['about']['tasks']} tasks, the first with {first.detail}; mend "
                "that (generate.max_tokens and the prompt must fit in the model's context) and start the same command "
                "again"
            )
        return made

    def _asking(self, work: Callable[[Writer], Coroutine[Any, Any, Value]]) -> Value:
        async def main() -> Value:
            async with open_client(self._endpoint, self._journal) as client:
                return await work(Writer(client, self._prompts, self._settings.generate))

        return asyncio.run(main())

    async def _solved(self, tasks_file: str, writer: Writer) -> list[tuple[int, tasks.Seed]]:
        seeds = await self._seeds(tasks_file, writer)
        await self._solve(seeds, writer)
        return seeds

    async def _seeds(self, tasks_file: str, writer: Writer) -> list[tuple[int, tasks.Seed]]:
        """Returns the tasks of this shard with their numbers among all."""
        settings = self._settings.generate
        if tasks_file:
            found = tasks.from_file(tasks_file, settings.test_style)
        else:
            tree = await self._grown(features.load(settings.features), writer)
            replace_text(self._folder / FEATURES, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
            found = tasks.from_features(tree, settings)
        numbered = list(enumerate(found))
        self._of_tasks = len(numbered)
        return [(n, seed) for n, seed in numbered if tasks.in_shard(seed, self._settings.shard)]

    async def _grown(self, tree: features.Tree, writer: Writer) -> features.Tree:
        """Returns the tree after `evolve_rounds` questions for more features, each about the tree before it.

        Raises UserError if the endpoint failed one: with an answer the next start would draw other tasks.
        """
        settings = self._settings.generate
        with progress("growing the feature tree", settings.evolve_rounds, "rounds") as advance:
            for number in range(settings.evolve_rounds):
                part = features.part(tree, random.Random(f"{settings.seed}:evolve:{number}"))
                try:
                    tree = features.merge(tree, await writer.more_features(part, number))
                except (AskFailed, MalformedAnswer) as error:
                    if isinstance(error, AskFailed) and not error.lasts:
                        raise UserError(
                            f"generate.evolve_rounds: the endpoint failed round {number} of growing the feature tree "
                            f"({error}), so no task was drawn; start the same command again: all answers so far are "
                            "in the journal"
                        ) from error
                    warn(f"round {number} of growing the feature tree gave nothing: {error}")
                advance(1, f"{features.leaves(tree)} features")
        return tree

    async def _solve(self, seeds: Sequence[tuple[int, tasks.Seed]], writer: Writer) -> None:
        """Brings every task to its end, or to the end of the budget."""
        left = [(n, seed) for n, seed in seeds if self._journal.get(OUTCOME, self._key(n, seed)) is None]
        if len(left) < len(seeds):
            say(f"{len(seeds) - len(left)} of {len(seeds)} tasks were finished before")
        with (
            concurrent.futures.ThreadPoolExecutor(self._limits.workers, thread_name_prefix="verdicts") as pool,
            progress("writing and debugging", len(seeds), "tasks", start=len(seeds) - len(left)) as advance,
        ):
            verdicts = Verdicts(self._sandbox, self._limits, self._journal, pool)
            solver = Solver(writer, verdicts, self._settings.generate, self._settings.samples)

            async def work(task: tuple[int, tasks.Seed]) -> None:
                await self._finish(*task, solver)
                advance(1)

            # Requests wait for the sandbox and the sandbox for requests: each gets enough of both.
            try:
                await lanes.each(left, work, self._endpoint.concurrency + 2 * self._limits.workers)
            except BaseException:
                # Nobody waits for programs that run for long.
                self._sandbox.stop()
                raise

    async def _finish(self, number: int, seed: tasks.Seed, solver: Solver) -> None:
        key = self._key(number, seed)
        try:
            outcome = await solver.solve(seed, number)
        except BudgetSpent as error:
            self._spent = error
            return
        if outcome.end in OPEN:
            self._open[key] = outcome
        else:
            self._journal.put(OUTCOME, key, dataclasses.asdict(outcome))

    def _pairs(self, seeds: Sequence[tuple[int, tasks.Seed]]) -> tuple[list[records.Pair], collections.Counter[str]]:
        settings, dropped = self._settings, collections.Counter[str]()
        found = judge.by_rules(self._trajectories(seeds), settings.pairing, dropped)
        if settings.generate.judge_pairs and found:
            at_a_time = self._endpoint.concurrency
            with progress("judging pairs", len(found), "pairs") as advance:
                found, spent = self._asking(lambda writer: judge.by_model(found, writer, at_a_time, dropped, advance))
            self._spent = self._spent or spent
        rows.write_rows(self._folder / PAIRS, map(dataclasses.asdict, found))
        return found, dropped

    def _write_outcomes(self, seeds: Sequence[tuple[int, tasks.Seed]]) -> None:
        finished = self._outcomes(seeds)
        rows.write_rows(self._folder / OUTCOMES, ({"number": n} | dataclasses.asdict(made) for n, made in finished))
        records.write_trajectories(self._folder / TRAJECTORIES, self._trajectories(seeds))

    def _trajectories(self, seeds: Sequence[tuple[int, tasks.Seed]]) -> Iterator[records.Trajectory]:
        made = (outcome.trajectory() for _, outcome in self._outcomes(seeds))
        return (trajectory for trajectory in made if trajectory is not None)

    def _outcomes(self, seeds: Sequence[tuple[int, tasks.Seed]]) -> Iterator[tuple[int, Outcome]]:
        """Yields what is known of the tasks, in their order, one at a time: all of them may not fit into memory."""
        for number, seed in seeds:
            key = self._key(number, seed)
            kept = self._journal.get(OUTCOME, key)
            if kept is not None:
                yield number, Outcome.from_json(kept)
            elif key in self._open:
                yield number, self._open[key]

    def _key(self, number: int, seed: tasks.Seed) -> str:
        # A task that a model writes from features is told apart from one of the same features by its number.
        return _digest(
            {"task": dataclasses.asdict(seed), "number": 0 if seed.instruction else number, "by": self._judged_by}
        )

    def _what_changes_outcomes(self) -> dict[str, Any]:
        settings, limits = dataclasses.asdict(self._settings.generate), self._limits.that_matter()
        for name in _FREE:
            del settings[name]
        versions = {name: prompt.version for name, prompt in self._prompts.items() if name != "judge_pair"}
        model = {"model": self._endpoint.model, "extra": self._endpoint.extra, "reasks": self._endpoint.reasks}
        return {"generate": settings, "sandbox": limits, "prompts": versions, "endpoint": model,
                "samples": self._settings.samples}  # fmt: skip

    def _what_changes_pairs(self) -> dict[str, Any]:
        judge_version = self._prompts["judge_pair"].version if self._settings.generate.judge_pairs else None
        return {"pairing": dataclasses.asdict(self._settings.pairing), "judge": judge_version}

    def _about(self, seeds: Sequence[tuple[int, tasks.Seed]]) -> dict[str, Any]:
        return {
            "tasks": len(seeds),
            "of_tasks": self._of_tasks,
            "model": self._endpoint.model,
            "samples": self._settings.samples,
            "max_refinements": self._settings.generate.max_refinements,
            "shard": list(self._settings.shard),
            "settings": self._judged_by,
            "pairing": _digest(self._what_changes_pairs()),
            # What `merge` does to the pairs of all shards as a run does to its own.
            "drop_duplicates": self._settings.pairing.filters.drop_duplicates,
        }


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
