"""Finds the run to go on with, and the hyperparameters that it began with."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tyro

from helpers import load_checkpoint, require

# With other values of these, a training that goes on is still the same training.
MAY_CHANGE = set(
    "epochs predict tta score_only check_data resume "
    "device precision compile_model workers input_dir output_dir logs_dir".split()
)


def from_command_line(kind: type) -> tuple[Any, dict[str, list[str]] | None]:
    """-> an instance of the dataclass `kind` with the values of the command line, and None.

    With --resume, what the command line leaves out is as the run began, resume is the path of its folder, and the
    columns of its split take the place of None. Raises UserError where there is no such run, and where a value would
    make another training of it.
    """
    hp = tyro.cli(kind)
    if hp.resume is None:
        return hp, None
    run = find_run(hp.resume, hp.output_dir)
    checkpoint = load_checkpoint(run / "last.pt")
    saved, split = checkpoint.get("hyperparameters"), checkpoint.get("split")
    require(
        isinstance(saved, dict) and isinstance(split, dict) and {"car", "part"} <= split.keys(),
        f"{run / 'last.pt'} is no checkpoint to go on from: it lacks its hyperparameters or its split.",
    )
    known = {field.name: field.default for field in fields(kind)}
    same = saved.keys() == known.keys()
    require(same, f"{run / 'last.pt'} was made by another version of main.py: go on with that, or start another run.")
    made = {name: type(known[name]) for name in known if isinstance(known[name], tuple | Path)}  # not of JSON
    began = kind(**{name: made[name](value) if name in made else value for name, value in saved.items()})
    hp = tyro.cli(kind, default=began)
    done = len(checkpoint.get("metrics", ()))
    ending = f"say --epochs {done} to end where it is, or " if done > began.half_size_epochs else ""
    trains = hp.epochs > done and not hp.score_only
    may_change = MAY_CHANGE | (set() if trains else {"threshold"})  # which judges the epochs to come
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
        not hp.score_only or bool(checkpoint.get("metrics")),
        f"{run} can't be scored yet: it has not been trained for a whole epoch. Go on with it, without --score-only.",
    )
    return replace(hp, resume=str(run)), split


def find_run(resume: str, output_dir: Path) -> Path:
    """The folder of the run that is meant: `resume` itself, or for "last" the one that began last in output_dir."""
    if resume == "last":
        saved = sorted((output_dir / "models").glob("model_[0-9]*/last.pt"))  # some may have saved nothing
        require(len(saved) > 0, f"There is no run in {output_dir / 'models'} to go on with.")
        return saved[-1].parent
    run = Path(resume).parent if Path(resume).name == "last.pt" else Path(resume)
    require(
        (run / "last.pt").exists(),
        f"{run} is no run to go on with: it holds no last.pt. Name a folder such as output/models/model_<time>.",
    )
    return run if run.name.strip(".") else run.resolve()
