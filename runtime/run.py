"""Finds the run to go on with, and the hyperparameters that it began with."""

import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tyro

from runtime import distributed
from runtime.errors import require, validate_defaults
from runtime.files import load_checkpoint

# With other values of these, a training that goes on is still the same training.
MAY_CHANGE = set(
    "epochs predict tta score_only check_data resume "
    "device precision compile workers input_dir output_dir logs_dir".split()
)


def from_command_line(kind: type) -> tuple[Any, dict[str, list[str]] | None]:
    """-> an instance of the dataclass `kind` with the values of the command line, and None.

    With --resume, what the command line leaves out is as the run began, resume is the path of its folder, and the
    columns of its split take the place of None. Raises UserError where there is no such run, and where a value would
    make another training of it, or a default of `kind` is none of its type.
    """
    validate_defaults(kind)
    hp = tyro.cli(kind)
    resume = distributed.broadcast(lambda: find_run_of(distributed.agents(), hp.output_dir)) or hp.resume
    if resume is None:
        if distributed.is_restart():
            print(f"torchrun has started this before, but its run isn't in {hp.output_dir}, so another one begins.")
        return hp, None
    run, checkpoint = distributed.broadcast(lambda: load_run(resume, hp.output_dir))
    saved, split = checkpoint["hyperparameters"], checkpoint["split"]
    require(
        isinstance(saved, dict) and isinstance(split, dict) and {"car", "image", "part"} <= split.keys(),
        f"{run / 'last.pt'} is no checkpoint to go on from: it lacks its hyperparameters or its split.",
    )
    saved = {"group_regex": None} | saved  # a run may have begun before own photos could be grouped
    known = {field.name: field.default for field in fields(kind)}
    same = saved.keys() == known.keys()
    require(same, f"{run / 'last.pt'} was made by another version of main.py: go on with that, or start another run.")
    made = {name: type(known[name]) for name in known if isinstance(known[name], tuple | Path)}  # not of JSON
    saved |= {"resume": str(run)}  # or fewer epochs than it began with would be refused, of a run that has had them
    began = kind(**{name: made[name](value) if name in made else value for name, value in saved.items()})
    hp = tyro.cli(kind, default=began)
    before, now = images_per_step(began, checkpoint["processes"]), images_per_step(hp, distributed.WORLD_SIZE)
    if checkpoint["processes"] != distributed.WORLD_SIZE:
        began_with = f"{checkpoint['processes']} process{'es' * (checkpoint['processes'] > 1)}"
        print(f"It began with {began_with}, of {before} images a step, and goes on with {distributed.WORLD_SIZE}, of {now}.")
    done = len(checkpoint["metrics"] or ())
    trained = saved_runs(hp.output_dir, holding="metrics.csv") if resume == "last" and not done else []
    before_it = ""
    if trained:
        before_it = f" One that has began before it: --resume {shlex.quote(str(trained[-1]))}"
        print(f"{run} has not been trained for a whole epoch.{before_it}")
    ending = f"say --epochs {done} to end where it is, or " if done > began.half_size_epochs else ""
    trains = hp.epochs > done and not hp.score_only
    may_change = MAY_CHANGE | (set() if trains else {"threshold"})  # which judges the epochs to come
    may_change |= {"batch_size", "accumulate_steps"} if now == before else set()
    for name in known:
        value, before = getattr(hp, name), getattr(began, name)
        require(
            value == before or name in may_change,
            f"--{name.replace('_', '-')} can't be {value} in {run}, which began with {before}: leave it out, or start "
            "another run, without --resume.",
        )
    require(
        hp.epochs in (began.epochs, done) or began.schedule == "constant",
        f"--epochs can't be {hp.epochs} in {run}, whose learning rate falls over {began.epochs} epochs: leave it out, "
        f"or {ending}start another run, without --resume.",
    )
    require(
        not hp.score_only or bool(checkpoint["metrics"]),
        f"{run} can't be scored yet: it has not been trained for a whole epoch. Go on with it, without --score-only."
        f"{before_it}",
    )
    return replace(hp, resume=str(run)), split


def images_per_step(hp: Any, count: int) -> int:
    """How many images a step of `count` processes with these hyperparameters has."""
    return hp.batch_size * hp.accumulate_steps * count


def load_run(resume: str, output_dir: Path) -> tuple[Path, dict]:
    """The folder of the run that is meant, and what of its last.pt isn't a net's or an optimizer's."""
    run = find_run(resume, output_dir)
    checkpoint = load_checkpoint(run / "last.pt")
    return run, {name: checkpoint.get(name) for name in ("hyperparameters", "split", "metrics")} | {
        "processes": checkpoint.get("processes", 1)
    }


def find_run_of(agents: list[str], output_dir: Path) -> str | None:
    """The run that these torchruns, or some of them, began before they started their processes anew; else None."""
    for run in reversed(saved_runs(output_dir) if agents else []):
        began = run / "torchrun.txt"
        if began.exists() and not set(agents).isdisjoint(began.read_text().splitlines()):
            return str(run)
    return None


def saved_runs(output_dir: Path, holding: str = "last.pt") -> list[Path]:
    """The folders of the runs in output_dir that hold such a file, the one that began last at the end."""
    return [saved.parent for saved in sorted((output_dir / "models").glob(f"model_[0-9]*/{holding}"))]


def find_run(resume: str, output_dir: Path) -> Path:
    """The folder of the run that is meant: `resume` itself, or for "last" the one that began last in output_dir."""
    if resume == "last":
        runs = saved_runs(output_dir)
        require(len(runs) > 0, f"There is no run in {output_dir / 'models'} to go on with.")
        return runs[-1]
    run = Path(resume).parent if Path(resume).name == "last.pt" else Path(resume)
    require(
        (run / "last.pt").exists(),
        f"{run} is no run to go on with: it holds no last.pt. Name a folder such as output/models/model_<time>.",
    )
    return run if run.name.strip(".") else run.resolve()
