"""The run: round after round a model is tested on conversations, learns from them, and is kept within its budget."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cl_jax import provenance
from cl_jax.conversations import checks
from cl_jax.conversations import log as logs
from cl_jax.conversations.guard import Decision, decide
from cl_jax.conversations.log import Line, Log
from cl_jax.conversations.old_text import OldText
from cl_jax.conversations.policies import Policy, label
from cl_jax.conversations.program import Program, scaled
from cl_jax.conversations.progress import Bar
from cl_jax.conversations.scoring import Score, of_all, of_conversations
from cl_jax.conversations.settings import Adaptation
from cl_jax.conversations.standing import Standings, alone, claim
from cl_jax.conversations.stream import Conversations, Round
from cl_jax.errors import UserError
from cl_jax.model import Model, Params
from cl_jax.results import write_json
from cl_jax.train import TrainState

ENVIRONMENT, DONE = "environment.json", "DONE.json"


class Adapted(NamedTuple):
    """What a run has come to."""

    params: Params | None  # what the model computes with at the end; None: it was finished already
    lines: list[Line]  # of every round, the first one before any
    out: Path


def adapt(
    model: Model,
    params: Params,
    conversations: Conversations,
    old: OldText,
    settings: Adaptation,
    out: Path,
    *,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
    export: Callable[[Path, Params], None] | None = None,
    quiet: bool = False,
) -> Adapted:
    """Tests on, and learns from, conversations one after the other; goes on where an earlier process stopped.

    A round: its conversations are scored by the model as it is; the policy trains on them; the guard lets the update
    pass, scales it back or undoes it; methods consolidate; a line is logged and a checkpoint written. A process that
    dies loses the round it is in, and the next one gives what it would have given. Where conversations were added
    since the folder's run ended, it goes on with these.

    Writes into `out`: adapt.parquet, see `cl_jax.conversations.log.table`; decisions.jsonl, of a guard; log.jsonl,
    checkpoints, environment.json, adapt.json.

    Args:
        model: reads `cl_jax.tokens.Tokens`, gives logits [B, L, V].
        params: what it can do already.
        conversations: with the `context`, `longest` and `every` of `settings`.
        old: text that stands for what it can do already.
        about: facts for environment.json.
        export: `(folder, params)`, called at the end with `out / "weights"`.

    Raises:
        UserError: settings out of range; tokens that the model does not have; another run's folder, or one that another
            process works on; conversations that are not those that the run began with.
    """
    checks.check(model, params, conversations, old, settings)
    with alone(out):
        claim(out, settings, seed, params, old)
        log, total = Log(out), len(conversations)
        done = log.lines[-1].done if log.lines else 0
        if (out / DONE).is_file() and done == total:
            return Adapted(None, log.lines, out)
        with Bar(label(settings.policy), total, quiet=quiet) as bar:
            run = _Run(model, params, conversations, old, settings, out, seed, bar)
            try:
                run.begin()
                bar.restored(run.done)
                while run.done < total:
                    run.round()
                    bar.advanced(run.done)
            finally:
                run.publish()
                write_json(out / ENVIRONMENT, {**provenance.environment(), **(about or {}), "last_run": bar.speed})
        if export is not None:
            export(out / "weights", run.params)
        write_json(out / DONE, {"conversations": total})
        return Adapted(run.params, run.log.lines, out)


class _Run:
    """A run between two rounds."""

    def __init__(
        self, model: Model, params: Params, conversations: Conversations, old: OldText, settings: Adaptation, out: Path,
        seed: int, bar: Bar,
    ) -> None:  # fmt: skip
        self._conversations, self._settings, self._out, self._seed, self._bar = conversations, settings, out, seed, bar
        self._old = OldText(*(part.astype(conversations.dtype) for part in old[:3]), name=old.name)
        self._policy: Policy = settings.policy.build(model, settings.optimizer.build())
        self._program = Program(self._policy, settings, checks.num_tokens(model, params, self._old.test), seed)
        self._start, self._state = params, self._program.begun(params, self._old.test)
        self._standings = Standings(out, self._policy, self._state, bar.say)
        self.log = Log(out)

    @property
    def done(self) -> int:
        """Conversations behind the run."""
        return self.log.lines[-1].done

    @property
    def params(self) -> Params:
        return self._program.params(self._state)

    def begin(self) -> None:
        """From the newest good checkpoint, or from the start."""
        found = self._standings.restored()
        if found is not None:
            number, self._state = found
            self.log.keep(number)
            self._check_stream()
            self._bar.say(f"continues after conversation {self.done} of {len(self._conversations)}")
            return
        self.log.keep(-1)
        if self._policy.starts:
            self._state = self._program.consolidated(self._state, self._old.train, len(self._old.train), 0)
        guard = None if self._settings.guard is None else self._costs(self._state)
        self._end_round(0, None, [], [], guard, None, measures=True)

    def round(self) -> None:
        """One round."""
        number, each = len(self.log.lines), self._conversations.round(self.done)
        scores = of_conversations(self._program.nats(self.params, each.rows, each.used), each)
        untaught = scores
        if self._policy.trains:
            untaught = of_conversations(self._program.nats(self._start, each.rows, each.used), each)
        for at, tokens in enumerate(each.cut):
            if tokens:
                origin, longest = self._conversations.origin(each.first + at), self._settings.longest
                self._bar.say(f"{origin}: longer than {longest} tokens, the last {tokens} are left out")
        guard, decision = self.log.lines[-1].guard, None
        if self._policy.trains and each.used:
            guard, decision = self._learn(number, each, guard)
        last = each.first + each.number == len(self._conversations)
        self._end_round(
            number, each, scores, [score.nats for score in untaught], guard, decision,
            measures=last or number % self._settings.old_every == 0,
        )  # fmt: skip

    def publish(self) -> None:
        """The tables, of what was done so far; nothing is written of a run any more."""
        self._standings.close()
        if self.log.lines:
            guard = self._settings.guard
            budget = None if guard is None else float(guard.budget)
            logs.write(self._out, self.log.lines, label(self._settings.policy), budget, self._seed)

    def _learn(self, number: int, each: Round, before: float | None) -> tuple[float | None, Decision | None]:
        """Trains on a round, and returns what old text costs after it and what the guard decided."""
        accepted, updated = self._state, self._program.updated(self._state, each.rows, each.used, number)
        decision = None
        if self._settings.guard is not None:
            base, trial = self.log.lines[0].guard, updated
            assert base is not None

            def measure(scale: float) -> float:
                nonlocal trial
                if scale < 1:
                    trial = updated._replace(trainable=scaled(accepted.trainable, updated.trainable, scale))
                return self._costs(trial)

            decision = decide(self._settings.guard, base, measure, bool(updated.diverged))
            if not decision.scale:
                self._state = self._rolled_back(number)
                return before, decision
            updated, before = trial, decision.tried[-1][1]
        consolidates = self._policy.consolidates
        if consolidates is not None and number % consolidates == 0:
            updated = self._program.consolidated(updated, each.rows, each.used, number)
        self._state = updated
        return before, decision

    def _rolled_back(self, number: int) -> TrainState:
        """The last accepted state, from its checkpoint: methods and optimizer of it are kept nowhere else."""
        found = self._standings.restored()
        if found is None or found[0] != number - 1:
            raise UserError(
                f"round {number} is to be rolled back, but the checkpoint of round {number - 1} is damaged; the same "
                "command again goes on from an older one"
            )
        return self._program.fresh_optimizer(found[1])

    def _costs(self, state: TrainState) -> float:
        """Bits per byte of the guard's old text."""
        return of_all(self._program.nats(self._program.params(state), self._old.guard), self._old.guard).bits_per_byte

    def _end_round(
        self, number: int, each: Round | None, scores: list[Score], untaught: list[float], guard: float | None,
        decision: Decision | None, *, measures: bool,
    ) -> None:  # fmt: skip
        old = of_all(self._program.nats(self.params, self._old.test), self._old.test) if measures else None
        line = Line(
            round=number,
            first=0 if each is None else each.first,
            sha256="" if each is None else each.sha256,
            scores=scores,
            untaught=untaught,
            cut=[] if each is None else each.cut,
            old=old,
            guard=guard,
            decision=decision,
            diverged=bool(self._state.diverged),
        )
        if line.diverged and self.log.lines and not self.log.lines[-1].diverged:
            self._bar.say(f"diverged in round {number}: nothing is learned from here on; lower the learning rate")
        self.log.add(line)
        self._standings.save(number, self._state)

    def _check_stream(self) -> None:
        for line in self.log.lines[1:]:
            end = line.first + len(line.scores)
            if end > len(self._conversations) or self._conversations.sha256(line.first, end) != line.sha256:
                raise UserError(
                    f"conversations {line.first + 1} to {end} are not those that the run in {self._out} has learned "
                    "from; put new ones behind the old ones, or give another folder with --out"
                )
