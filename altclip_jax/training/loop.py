"""The only place with a loop over steps."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from altclip_jax.data.batches import Batches, HostBatch
from altclip_jax.distributed import Concern, OtherProcessError, OtherSamplesError, Stopped, Watch, watched
from altclip_jax.training.checkpoint import CheckpointStore
from altclip_jax.training.config import RunConfig
from altclip_jax.training.description import Files, describe, files_of
from altclip_jax.training.evaluate import summary
from altclip_jax.training.flops import measured_peak
from altclip_jax.training.interrupt import StopRequest
from altclip_jax.training.log import RunLog, Throughput
from altclip_jax.training.processes import Agreement, require_same
from altclip_jax.training.run import Run, build
from altclip_jax.training.run_folder import claim_folder, export, hold
from altclip_jax.training.state import TrainState


class Outcome(NamedTuple):
    """How a run ended."""

    step: int  # updates done
    steps: int  # of the whole run
    stopped_by: str | None  # the signal that ended it early
    metrics: dict[str, float]  # of the last evaluation, and how fast it went
    exported: Path | None  # where the finished model is


class NotFinite(ValueError):  # noqa: N818 - it says what is the matter
    """An update was infinite or no number; the message names the step and its samples."""


def train(config: RunConfig, *, dry_run: bool = False, quiet: bool = False) -> Outcome:
    """Trains, from the beginning or from the last checkpoint in the run's folder.

    SIGTERM and SIGINT end it after the step at hand, with everything saved. What is not finite is neither applied nor
    saved. What ends one of several processes ends all, see `altclip_jax.distributed.watched`.

    Args:
        config: What the run is.
        dry_run: Build everything, do one step of it, and leave nothing behind; features are not computed ahead.
        quiet: Print nothing.

    Raises:
        NotFinite: an update was infinite or no number.
        TooManyBadSamples: the data are worse than the configuration allows.
        ValueError: the configuration does not fit the model, the data or the run in the folder, or the processes of the
            run were not started alike.
        OSError: something cannot be read or written.
        OtherProcessError: another process of the run has met an error.
    """
    if dry_run:
        if jax.process_count() > 1:
            raise ValueError(
                "A dry run is made by one process: run it without --processes, or plan with `altclip plan`."
            )
        with tempfile.TemporaryDirectory() as scratch:
            return _dry_run(config, Path(scratch), quiet)
    with watched() as watch:
        files = files_of(config.data.train)  # once: where they lie may be gone when the run is saved
        require_same(describe(config, files))
        folder = Path(config.folder)
        claim_folder(config, folder)
        return _train(config, folder, files, quiet, watch)


def _train(config: RunConfig, folder: Path, files: Sequence[Files], quiet: bool, watch: Watch) -> Outcome:
    with (
        StopRequest(watch.alive) as stop,
        hold(folder) as guarded,
        CheckpointStore(folder, config.checkpoints) as store,
        watch.telling(),
    ):
        watch.writing = store.is_writing
        last = store.latest()
        if last is not None:
            config = store.check(last, config, files)
        with RunLog(
            folder, first_step=last or 0, steps=config.steps, tensorboard=config.logging.tensorboard, quiet=quiet
        ) as log:
            if not guarded:
                log.say(f"there are no file locks in {folder}: nothing keeps another run out of it")
            try:
                run = build(config, folder, files, resumed=last is not None, say=log.say, stop=stop)
            except Stopped:
                return Outcome(last or 0, config.steps, stop.name, {}, None)
            state = run.first_state() if last is None else store.restore(last, run.abstract)
            if last is not None:
                log.say(f"going on from step {last} of {config.steps} in {folder}")
                store.add_metrics(log.evaluations)
            outcome = _Loop(run, store, log, stop, watch).until_done(state)
            del state
        if outcome.stopped_by is None:
            step = export(folder, folder / "export", best=config.checkpoints.keep_best > 0, mesh=run.mesh)
            if step != outcome.step:
                log.say(f"exported the best checkpoint, of step {step}")
            outcome = outcome._replace(exported=folder / "export")
    return outcome


class _Loop:
    """The loop over steps, and the counts it keeps for what it tells."""

    def __init__(self, run: Run, store: CheckpointStore, log: RunLog, stop: StopRequest, watch: Watch):
        self._run, self._store, self._log, self._stop, self._watch = run, store, log, stop, watch
        self._metrics: dict[str, float] = {}  # of the last evaluation
        self._saved: int | None = store.latest()
        self._throughput = Throughput()
        self._flops = 0.0

    def until_done(self, state: TrainState) -> Outcome:
        config, agreement = self._run.config, Agreement(self._run.mesh, self._run.config.batch_size)
        step = int(state.step)
        pending: list[tuple[HostBatch, dict[str, jax.Array]]] = []
        concern, measured = Concern.NONE, True
        with self._run.batches(step) as batches, self._profiler() as profile, self._watch.telling():
            if step and self._due(step)[1] and step not in self._log.evaluations:  # it was interrupted there
                found, concern = self._evaluate(step, state)
                measured = found is not None or self._run.evaluate is None
                if found is not None:
                    self._store.add_metrics({step: found})
            concern = max(concern, self._ask(agreement, batches)())
            while step < config.steps and not concern:
                batch = next(batches)
                if not self._flops:
                    self._flops = self._run.flops(batch.placed)
                profile(step + 1, pending)
                agreed = self._ask(agreement, batches)
                state, metrics = self._run.step(state, batch.placed)
                batch = dataclasses.replace(batch, placed={})  # the devices need it no longer than the step
                step += 1
                pending.append((batch, metrics))
                if len(pending) > 1:  # one step may be under way while the next is prepared
                    self._require_finite(*pending.pop(0))
                concern = agreed()
                saves, evaluates = self._due(step)
                if saves or evaluates:
                    self._settle(pending)  # before the clock is looked at: this wait is the step's own
                self._throughput.step(batch.waited)
                if step % config.logging.every == 0 or step == config.steps:
                    self._tell(step, batch, metrics)
                if saves or evaluates:
                    with self._throughput.paused():
                        found = None
                        if evaluates and not concern:
                            found, concern = self._evaluate(step, state)
                        measured = not evaluates or found is not None or self._run.evaluate is None
                        if saves:
                            self._store.save(step, state, self._run.description, found)
                            self._saved = step
                self._store.check_written()
                concern = max(concern, agreement.at_once(self._concern(batches)))
            early = concern != Concern.NONE and (step < config.steps or not measured)
            if early:
                self._keep(step, state, pending)  # whatever is the matter, it is not the state
            self._store.wait()
            if batches.error is not None:
                raise batches.error
        if concern == Concern.OTHER_SAMPLES:
            raise OtherSamplesError
        if concern == Concern.CANNOT_READ:
            raise OtherProcessError
        stopped = self._stop.name if early else None
        return Outcome(step, config.steps, stopped, {**self._metrics, **self._speed()}, None)

    def _ask(self, agreement: Agreement, batches: Batches) -> Callable[[], Concern]:
        """Places the next batch, and asks whether all processes can go on with it."""
        coming = batches.peek()
        return agreement.ask(self._concern(batches), None if coming is None else coming.ids)

    def _concern(self, batches: Batches) -> Concern:
        if batches.error is not None:
            return Concern.CANNOT_READ
        return Concern.ASKED_TO_STOP if self._stop.asked() else Concern.NONE

    def _due(self, step: int) -> tuple[bool, bool]:
        """Returns whether a step is saved, and whether it is evaluated."""
        config, done = self._run.config, step == self._run.config.steps
        saves = done or step % config.checkpoints.every == 0
        evaluates = done or step % config.evaluation.every == 0 or (saves and config.checkpoints.keep_best > 0)
        return saves, evaluates

    def _evaluate(self, step: int, state: TrainState) -> tuple[dict[str, float] | None, Concern]:
        """Returns the metrics of a state that is known to be finite, None without data or time for them."""
        if self._run.evaluate is None:
            return None, Concern.NONE
        metrics: dict[str, float] | None = None
        error: Exception | None = None
        try:
            metrics = self._run.evaluate(state)
        except Stopped:
            pass
        except Exception as found:
            error = found
        if (end := self._watch.meet(error)) is not None:
            self._keep(step, state, [])  # what is wrong with the evaluation is not with the state
            raise end
        if metrics is None:
            return None, Concern.ASKED_TO_STOP
        self._metrics = metrics
        self._log.evaluation(step, metrics)
        self._log.say(f"step {step}  {summary(metrics)}")
        return metrics, Concern.NONE

    def _keep(self, step: int, state: TrainState, pending: list[Any]) -> None:
        """Saves outside the schedule, before the run ends early."""
        self._settle(pending)
        if step > 0:
            self._store.save(step, state, self._run.description)
            self._store.wait()
            self._saved = step

    def _settle(self, pending: list[Any]) -> None:
        while pending:
            self._require_finite(*pending.pop(0))

    def _require_finite(self, batch: HostBatch, metrics: dict[str, jax.Array]) -> None:
        if bool(metrics["finite"]):
            return
        names = ", ".join(dict.fromkeys(batch.names[:10])) + (
            f" and {len(batch.names) - 10} more" if len(batch.names) > 10 else ""
        )
        last = (
            "no checkpoint has been saved yet"
            if self._saved is None
            else f"the checkpoint of step {self._saved} is as it was"
        )
        whose = f" in process {jax.process_index()}" if jax.process_count() > 1 else ""
        raise NotFinite(
            f"The update of step {batch.step + 1} is not finite (loss {float(metrics['loss']):g}, norm of the gradient"
            f" {float(metrics['gradient_norm']):g}); it was not applied, and {last}. Its samples{whose}: {names}. Look"
            f" at them; or export that checkpoint (`altclip export {self._run.config.folder} NEW`) and start another"
            " run from it (model.source=NEW) with a lower optimizer.learning_rate."
        )

    def _tell(self, step: int, batch: HostBatch, metrics: dict[str, jax.Array]) -> None:
        config = self._run.config
        self._require_finite(batch, metrics)
        values = {name: float(value) for name, value in metrics.items() if name != "finite"}
        speed, waiting = self._throughput.lately()
        self._log.train(
            step,
            {
                **values,
                "learning_rate": float(self._run.schedule(step - 1)),
                **({"samples_per_second": speed * config.batch_size, "waiting": waiting} if speed else {}),
            },
            left=(config.steps - step) / speed if speed else math.inf,
        )

    def _speed(self) -> dict[str, float]:
        """Returns samples per second, the share of waiting for input, and that of the peak of matrix products."""
        steps_per_second, waiting = self._throughput.overall()
        if not steps_per_second:
            return {}
        config = self._run.config
        flops = self._flops * steps_per_second
        peak = measured_peak(config.model.dtype, self._run.mesh.size)
        return {
            "samples_per_second": steps_per_second * config.batch_size,
            "waiting": waiting,
            "flops_per_second": flops,
            "share_of_peak": flops / peak,
        }

    @contextlib.contextmanager
    def _profiler(self) -> Iterator[Callable[[int, list[Any]], None]]:
        """Gives a function that is told of each step before it is done, and traces those of the configuration."""
        first, last = self._run.config.logging.profile_steps or (0, 0)
        folder, tracing = self._run.folder / "profile", False

        def switch() -> None:
            nonlocal tracing
            tracing = not tracing
            if tracing:
                jax.profiler.start_trace(str(folder))
            else:
                jax.profiler.stop_trace()  # type: ignore[no-untyped-call]
                self._log.say(f"profile of steps {first} to {last} in {folder}")

        def look(step: int, pending: list[Any]) -> None:
            if tracing != (first <= step <= last):
                self._settle(pending)  # what is still under way belongs to this side
                switch()

        try:
            yield look
        finally:
            if tracing:
                switch()


def _dry_run(config: RunConfig, folder: Path, quiet: bool) -> Outcome:
    with RunLog(folder, first_step=0, steps=1, tensorboard=config.logging.tensorboard, quiet=quiet) as log:
        run = build(config, folder, files_of(config.data.train), resumed=False, storing=False, say=log.say)
        state = run.first_state()
        with run.batches(0) as batches:
            batch = next(batches)
            state, metrics = run.step(state, batch.placed)
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        if not values["finite"]:
            raise NotFinite(
                f"The first update is not finite (loss {values['loss']:g}, norm of the gradient"
                f" {values['gradient_norm']:g}): look at the model's parameters and at its samples,"
                f" {', '.join(dict.fromkeys(batch.names[:10]))}."
            )
        log.say(
            f"one step on {len(batch.names)} samples: loss {values['loss']:.4g}, gradient {values['gradient_norm']:.4g}"
        )
    return Outcome(1, config.steps, None, values, None)
