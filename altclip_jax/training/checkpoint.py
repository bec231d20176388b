"""A run's checkpoints: the train state and the configuration, by orbax, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from altclip_jax.distributed import barrier, is_first
from altclip_jax.files.json_file import write_bytes
from altclip_jax.files.staging import refusals_explained
from altclip_jax.sentences import some_lines
from altclip_jax.training.config import CheckpointSettings, RunConfig
from altclip_jax.training.description import Files, describe, differences, keep_own_past, read_description
from altclip_jax.training.state import TrainState
from altclip_jax.weights.convert import Params
from altclip_jax.weights.folder import orbax_shapes


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]
    """Says at once, and without a lock, what is done in the background.

    Orbax raises what went wrong there after it has waited for the other processes, and holds a lock meanwhile.

    Attributes:
        writing: A checkpoint is on its way to the disk.
        failure: What it could not be written for.
    """

    writing = False
    failure: BaseException | None = None

    def save(self, *arguments: Any, **options: Any) -> bool:
        begun: bool = False
        self.writing = True
        try:
            begun = super().save(*arguments, **options)
        finally:
            if not begun:
                self.writing = False
        return begun

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failure = error
            raise

    def _finalize(self, *arguments: Any) -> None:
        try:
            super()._finalize(*arguments)
        finally:
            self.writing = False


class CheckpointStore:
    """The checkpoints in a run's folder; a context manager that waits for what is being written."""

    def __init__(self, folder: Path, settings: CheckpointSettings, *, read_only: bool = False):
        """Opens `folder`/checkpoints, making it if need be.

        Args:
            folder: The run's.
            settings: What is kept.
            read_only: Change nothing, neither make the folder nor clear away what another process has begun to write.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        self._folder = (folder / "checkpoints").absolute()
        self._settings = settings
        if not read_only and is_first():
            with refusals_explained(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                probe = self._folder / ".writable"
                probe.touch()
                probe.unlink()

        def rank(metrics: Mapping[str, float]) -> float:
            return float(metrics[settings.metric])

        keep: list[Any] = [policies.LatestN(settings.keep_last)]
        if settings.keep_best:
            keep.append(
                policies.BestN(
                    get_metric_fn=rank,
                    # of two, the one that sorts last is kept
                    reverse=settings.mode == "min",
                    n=settings.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._kept = policies.AnyPreservationPolicy(keep)
        options = ocp.CheckpointManagerOptions(
            # without it metrics are not written, and after an interruption no earlier checkpoint would be the best
            best_fn=rank if settings.keep_best else None,
            best_mode=settings.mode,
            preservation_policy=self._kept,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        with self._explain("opened"):
            self._manager = _Manager(self._folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            with self._explain("written"):
                self._manager.close()
        # after a failure it would wait for the other processes, which wait for this one
        elif self._manager.failure is None or jax.process_count() == 1:
            with contextlib.suppress(Exception):  # what led here matters more
                self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of the whole checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Returns the step of the last whole checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """Returns the step of the best whole checkpoint by `keep_best`, or the last where none was measured."""
        best: int | None = self._manager.best_step() if self._settings.keep_best else None
        return self.latest() if best is None else best

    def save(
        self,
        step: int,
        state: TrainState,
        description: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies the state and writes it in the background; a step that is there already is left as it is.

        Args:
            step: Updates done.
            state: After them.
            description: Of the run, see `describe`.
            metrics: Of the state, if it was evaluated.

        Raises:
            ValueError: the metric that decides what is best is not among `metrics`.
            OSError: this or the previous checkpoint could not be written; the last whole one is as it was.
        """
        if step in self._manager.all_steps():
            return
        if metrics:
            self._require_metric(metrics)
        self.wait()
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(dict(description)))
        with self._explain("written"):
            self._manager.save(step, args=items, metrics=dict(metrics) if metrics else None)

    def add_metrics(self, evaluations: Mapping[int, Mapping[str, float]]) -> None:
        """Gives metrics to checkpoints that were saved without, and forgets those that are neither last nor best now.

        So it is where an evaluation was interrupted, and done when the run went on. All processes call this.

        Args:
            evaluations: By step; steps without a checkpoint, and those that have metrics, are left alone.

        Raises:
            ValueError: the metric that decides what is best is not among them.
            OSError: they could not be written.
        """
        if not self._settings.keep_best:
            return
        self.wait()
        steps = self.steps()
        missing = [step for step in steps if step in evaluations and self._manager.metrics(step) is None]
        if not missing:
            return
        for step in missing:
            self._require_metric(evaluations[step])
        barrier("what lacks metrics is known")
        if is_first():
            for step in missing:
                # as orbax writes it; a folder without the file, which a kill may leave, is none to it
                file = self._folder / str(step) / "metrics" / "metrics"
                write_bytes(file, json.dumps(dict(evaluations[step])).encode())
        barrier("checkpoints have their metrics")
        with self._explain("read"):
            self._manager.reload()
            infos: list[Any] = [SimpleNamespace(step=step, metrics=self._manager.metrics(step)) for step in steps]
        kept = self._kept.should_preserve(infos, context=policies.PreservationContext())
        with self._explain("removed"):
            for info, keep in zip(infos, kept, strict=True):
                if not keep:
                    self._manager.delete(info.step)

    def is_writing(self) -> bool:
        """Returns whether a checkpoint is on its way to the disk; any thread may ask."""
        return self._manager.writing

    def check_written(self) -> None:
        """Raises at once what went wrong while a checkpoint was written in the background.

        Raises:
            OSError: it could not be written.
        """
        if self._manager.failure is not None:
            with self._explain("written"):
                raise self._manager.failure

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            OSError: it could not be written.
        """
        while self.is_writing():
            self.check_written()
            time.sleep(0.01)
        with self._explain("written"):
            self._manager.wait_until_finished()

    def check(self, step: int, config: RunConfig, files: Sequence[Files]) -> RunConfig:
        """Compares a run with the one that a checkpoint was made by, and returns what it goes on with.

        Args:
            step: One of `steps()`.
            config: What the run is today.
            files: What it learns from, see `files_of`.

        Raises:
            ValueError: they differ in what decides the numbers; the differences are shown.
            OSError: the checkpoint cannot be read.
        """
        with self._explain_reading(step):
            found = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        before = read_description(found)
        config = keep_own_past(config, before)
        if found := differences(describe(config, files), before):
            raise ValueError(
                f"The run in {self._folder.parent} was started with other settings (its own -> yours):\n  - "
                + "\n  - ".join(some_lines(found))
                + "\nGo on with its own settings, or choose another folder for a new run."
            )
        return config

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads a state onto the devices that `abstract` names, whatever devices wrote it.

        Args:
            step: One of `steps()`.
            abstract: Shapes, dtypes and shardings.

        Raises:
            ValueError: the checkpoint holds another tree or other shapes; every difference is shown.
            OSError: it cannot be read.
        """
        self._check_shapes(step, abstract)
        with self._explain_reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        state: TrainState = restored["state"]
        return state

    def params(self, step: int, abstract: Params, *, average: bool = False) -> Params:
        """Reads the parameters of a state, or their moving average; nothing else is read.

        Args:
            step: One of `steps()`.
            abstract: Shapes, dtypes and shardings of the parameters that train.
            average: The moving average.

        Raises:
            OSError: the checkpoint cannot be read.
        """
        name = "average" if average else "params"
        wanted = {name: abstract}
        arguments = ocp.args.PyTreeRestore(
            item=wanted, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
        )
        with self._explain_reading(step), ocp.PyTreeCheckpointer() as checkpointer:
            restored: Params = checkpointer.restore(self._folder / str(step) / "state", args=arguments)[name]
        return restored

    def _require_metric(self, metrics: Mapping[str, float]) -> None:
        if self._settings.keep_best and self._settings.metric not in metrics:
            raise ValueError(
                f"checkpoints.metric is {self._settings.metric!r}, which is not evaluated; there are"
                f" {', '.join(metrics)}."
            )

    def _check_shapes(self, step: int, abstract: TrainState) -> None:
        with self._explain_reading(step):
            have, want = _shapes(orbax_shapes(self._folder / str(step) / "state")), _shapes(abstract)
        faults = [
            f"{name}: {have.get(name, 'absent')} -> {want.get(name, 'absent')}"
            for name in sorted({*have, *want})
            if have.get(name) != want.get(name)
        ]
        if faults:
            raise ValueError(
                f"The checkpoint of step {step} in {self._folder} does not fit this run (there -> here):\n  - "
                + "\n  - ".join(some_lines(faults))
            )

    @contextlib.contextmanager
    def _explain(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            last = max((int(path.name) for path in self._folder.glob("[0-9]*") if path.name.isdecimal()), default=None)
            kept = "there is none yet" if last is None else f"the last whole one is of step {last}"
            raise OSError(f"A checkpoint in {self._folder} could not be {what} ({_reason(error)}); {kept}.") from error

    @contextlib.contextmanager
    def _explain_reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OSError(
                f"The checkpoint {self._folder / str(step)} could not be read ({_reason(error)}). To go on from an"
                " earlier one, move this one out of the way."
            ) from error


def save_tree(folder: Path, tree: Params) -> None:
    """Writes a parameter tree by itself, whole or not at all; one that is there is replaced.

    Raises:
        OSError: it could not be written.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), tree, force=True)
    except Exception as error:
        raise OSError(f"{folder} could not be written ({_reason(error)}).") from error


def load_tree(folder: Path, abstract: Params) -> Params:
    """Reads a tree that `save_tree` wrote onto the devices that `abstract` names.

    Raises:
        OSError: it could not be read.
    """
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree: Params = checkpointer.restore(folder.absolute(), abstract)
    except Exception as error:
        raise OSError(f"{folder} could not be read ({_reason(error)}).") from error
    return tree


def _reason(error: BaseException) -> str:
    """Returns in one line what orbax or its storage raised, which may be anything and has its cause at the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:80]} ... {text[-215:]}'}"


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path): (
            f"{getattr(leaf.dtype, 'name', leaf.dtype)}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }
