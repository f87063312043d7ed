"""The command line, its checks, the rules of --resume, and what main() needs to know besides the hyperparameters."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from data.layout import make_layout
from torch import nn
from torch.utils.data import DataLoader, Dataset

from callbacks.scorer import ScorerCallback
from data.check import check_data
from data.fetcher import DatasetFetcher
from data.sampler import shard
from helpers import format_size, get_model_timestamp
from nn.callback import Callback
from nn.unet import NETS
from nn.unet_origin import SizeError
from runtime import distributed
from runtime.errors import UserError, advise, check_ranges, friendly_errors, quiet_worker, require
from runtime.files import load_checkpoint, make_writable
from runtime.machine import choose_machine


@dataclass(frozen=True)
class RunOptions:
    """Where and how it runs."""

    dataset: Literal["carvana", "sample", "own"] = "carvana"  # Kaggle's images, drawn cars, or images of your own
    group_regex: str | None = None  # own images: what the file names of one object share; None: an object per image
    hq_files: bool | None = None  # train_hq/ and test_hq/; None: whichever is there, or else the smaller files
    input_dir: Path = Path("input")  # train[_hq]/, train_masks/, test[_hq]/; what is missing is downloaded
    output_dir: Path = Path("output")  # for models/ and submit.csv.gz
    logs_dir: Path = Path("logs")  # for TensorBoard
    predict: bool = True  # predict the test images after training (not for --dataset own, which has predict.py)
    device: str | None = None  # cpu, cuda, cuda:1, mps, ...; None: the accelerator of this machine
    precision: Literal["float32", "bfloat16", "float16"] | None = None  # None: the fastest safe one
    compile: bool = False  # compile the net with torch.compile: minutes at first, faster steps on some GPUs
    workers: int | None = None  # processes that read images; None: as many as the machine can spare
    resume: str | None = None  # "last", or the folder of a run in output_dir/models: continue it
    score_only: bool = False  # with --resume: only score the run's best epoch again
    check_data: bool = False  # only read every image and mask once, and list all problems


RANGES = {
    "validation_size": "(0, 1)", "sample_size": "(0, 1]", "batch_size": "[1, inf)", "accumulate_steps": "[1, inf)",
    "epochs": "[1, inf)", "half_size_epochs": "[0, inf)", "learning_rate": "(0, inf)", "momentum": "[0, 1)",
    "weight_decay": "[0, inf)", "warmup_epochs": "[0, inf)", "grad_clip": "[0, inf)", "ema_decay": "[0, 1)",
    "seed": "[0, 4294967296)", "threshold": "(0, 1)",
}
AUGMENTATION_RANGES = {
    "shift": "[0, 1)", "scale": "[0, 1)", "rotation": "[0, 180]", "color_jitter": "[0, 1]", "grayscale": "[0, 1]",
    "blur": "[0, 10]",
}
USUAL_LEARNING_RATE = {"SGD": 0.01, "RMSprop": 0.0002, "AdamW": 0.001}
FIXED_OPTIONS = {"dataset", "group_regex", "hq_files"}  # they decide what is learned, so a resumed run keeps them
FREE_HYPERPARAMETERS = {"epochs", "tta"}  # a resumed run may change them


class Run:
    """Where and how main() runs: its folders, machine and data, and whether it continues another run.

    hp: the hyperparameters. options: of the command line. folder: of the run, output_dir/models/model_<time>.
    split: the columns of split.csv of a resumed run; None: draw a new split.
    """

    def __init__(self, hp: Any, options: RunOptions, folder: Path, split: dict[str, list[str]] | None = None):
        self.hp, self.folder, self.split = hp, folder, split
        self.score_only, self.resumed = options.score_only, options.resume is not None
        self.options = replace(options, resume=None, score_only=False, check_data=False)  # what is saved
        self.name, self.logs_dir = folder.name.removeprefix("model_"), options.logs_dir
        self.submission = options.output_dir / "submit.csv.gz"
        self.layout = make_layout(options.dataset, options.input_dir, options.hq_files, options.group_regex)
        self.predict = options.predict and options.dataset != "own" and not self.score_only
        self.machine = choose_machine(options.device, options.precision, options.workers, options.compile,
                                      distributed.LOCAL_RANK, distributed.LOCAL_WORLD_SIZE)

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments that all DataLoaders share."""
        return dict(batch_size=self.hp.batch_size, num_workers=self.machine.workers,
                    persistent_workers=self.machine.workers > 0, pin_memory=self.machine.device.type == "cuda",
                    worker_init_fn=quiet_worker)

    def eval_loader(self, dataset: Dataset) -> DataLoader:
        """A loader in the order of the data set; with several processes, of this process's batches."""
        return DataLoader(dataset, sampler=shard(len(dataset), self.hp.batch_size), **self.loading)

    def training_callbacks(self, *callbacks: Callback) -> Sequence[Callback]:
        """These callbacks; none of them with --score-only, which leaves the run as it is."""
        return () if self.score_only else callbacks

    def announce(self, ds_fetcher: DatasetFetcher, net: nn.Module, X_test: Sequence[Path]) -> None:
        """Print what is trained, on what, and where the results go."""
        parameters = sum(weights.numel() for weights in net.parameters())
        sizes = f"{format_size(net.in_shape[1:])} pixels to {format_size(net.output_size)}"
        processes = ""
        if distributed.WORLD_SIZE > 1:
            processes = (f"\n            {distributed.WORLD_SIZE} processes, {self.hp.batch_size} images per batch in "
                         f"each: {images_per_step(self.hp, distributed.WORLD_SIZE)} images per step")
        print(f"data        {ds_fetcher.describe(len(X_test))}\n"
              f"net         {self.hp.net}, {parameters:,} parameters, from {sizes}\n"
              f"machine     {self.machine.reasons}{processes}\n"
              f"folder      {self.folder}\n"
              f"curves      tensorboard --logdir={shlex.quote(str(self.logs_dir))}\n")

    def print_next_step(self, ds_fetcher: DatasetFetcher, scorer: ScorerCallback) -> None:
        """Print the command that uploads the submission or, for own images, that cuts out the worst of them."""
        if distributed.is_main_process() and (self.predict or self.options.dataset == "own"):
            as_scored = ["--threshold", str(self.hp.threshold), "--tta", str(self.hp.tta)] if self.resumed else []
            worst = scorer.table()["image"].iloc[0]
            print(ds_fetcher.next_step(self.submission, self.folder / "best.pt", worst, *as_scored))


def launch(main: Callable[[Any, Run], None], hyperparameters: type) -> None:
    """Run main(hp, run) with the values of the command line, in each process that torchrun started.

    hyperparameters: the dataclass with the defaults. Everything that can be checked without the data is checked first.
    A user's mistake ends the program with one sentence, and so does a known failure of the machine.
    """
    with friendly_errors(), distributed.init_distributed():
        hp, options, folder, split = from_command_line(hyperparameters)
        run = Run(hp, options, folder, split)
        net = NETS[hp.net]
        with advise(hp, run.machine, net.valid_sizes, net.margin):
            if options.check_data:
                check_only(run)
            else:
                main(hp, run)


def check_only(run: Run) -> None:
    """--check-data: list all problems of the data set instead of training on it."""
    ds_fetcher = DatasetFetcher(run.layout)
    ds_fetcher.download_dataset(test_images=False)
    if distributed.is_main_process():
        check_data(ds_fetcher, run.options.workers)


def from_command_line(hyperparameters: type, args: Sequence[str] | None = None) -> tuple:
    """-> hyperparameters, RunOptions, folder of the run, and the split of a resumed run or None.

    args: the command line; None: sys.argv. With --resume, what it leaves out is as the run began. Raises UserError for
    values out of range, options that don't fit together, and for a run that can't be resumed so.
    """
    hp, options = parse(hyperparameters, args)
    restarted = any(distributed.all_gather(distributed.is_restart()))  # by torchrun, perhaps on another machine
    resume = options.resume or distributed.broadcast(
        lambda: "last" if restarted and saved_runs(options.output_dir) else None)
    if resume is None:
        check(hp, options)
        folder = options.output_dir / "models" / f"model_{distributed.broadcast(get_model_timestamp)}"
        split = None
    else:
        folder, checkpoint = distributed.broadcast(lambda: load_run(resume, options.output_dir))
        hp, options = resumed(folder, checkpoint, hyperparameters, args, named=resume != "last")
        split = checkpoint["split"]
    if distributed.is_main_process() and not options.check_data:
        make_writable(options.output_dir, options.output_dir / "models", options.logs_dir)
    warn(hp, hyperparameters)
    return hp, options, folder, split


def parse(hyperparameters: type, args: Sequence[str] | None, default: Any = None) -> tuple[Any, RunOptions]:
    """The command line as an instance of the dataclass and RunOptions. default: a pair of them, of a resumed run."""
    flat = tyro.conf.arg(prefix_name=False)
    both = make_dataclass("Both", [
        ("hyperparameters", Annotated[hyperparameters, flat], field(default_factory=hyperparameters)),
        ("options", Annotated[RunOptions, tyro.conf.arg(prefix_name=False, name="run")], field(default=RunOptions())),
    ])
    parsed = tyro.cli(both, args=args, default=both(*default) if default else None, config=(tyro.conf.OmitArgPrefixes,),
                      description="Train a U-Net to find the car in an image, and predict masks for Kaggle.")
    return parsed.hyperparameters, parsed.options


def check(hp: Any, options: RunOptions, is_new: bool = True) -> None:
    """Raise UserError for a value out of its range, or for options that don't fit together.

    is_new: whether some epochs must be left after the half-size epochs and the warmup; a resumed run may have had them.
    """
    check_ranges(hp, **RANGES)
    check_ranges(hp.augment_img, **AUGMENTATION_RANGES)
    check_ranges(options, workers="[0, inf)")
    epochs = f"must be less than --epochs {hp.epochs}, not"
    for holds, sentence in (
        (hp.half_size_epochs < hp.epochs or not is_new, f"--half-size-epochs {epochs} {hp.half_size_epochs}."),
        (hp.warmup_epochs < hp.epochs or not is_new, f"--warmup-epochs {epochs} {hp.warmup_epochs}."),
        (not hp.warmup_epochs or hp.schedule != "one_cycle",
         "--warmup-epochs cannot be combined with --schedule one_cycle, which has its own warmup."),
        (not options.score_only or options.resume, "--score-only needs a run: pass --resume last too."),
        (options.dataset != "sample" or not options.hq_files, "The drawn sample has no train_hq/: omit --hq-files."),
        (options.dataset != "own" or options.hq_files is None, "--hq-files is for Kaggle's images: omit it."),
        (options.dataset == "own" or options.group_regex is None,
         f"--group-regex {options.group_regex!r} is for images of your own: pass --dataset own too, or omit it."),
    ):
        require(bool(holds), sentence)
    check_sizes(hp)


def check_sizes(hp: Any) -> None:
    """Raise UserError, with the sizes to pass, unless the net makes masks of this size from images of this size."""
    net = NETS[hp.net]
    try:
        output_size = net.check(hp.input_img_resize)
    except SizeError as error:
        ways = [f"--input-img-resize {h} {w} --output-img-resize {h - net.margin} {w - net.margin}"
                for h, w in error.nearest]
        raise UserError(f"{error} Pass {', or '.join(ways)}.") from None
    height, width = output_size
    require(hp.output_img_resize == output_size, f"--output-img-resize must be {height} {width}: {hp.net} makes masks "
            f"of {format_size(output_size)} from images of {format_size(hp.input_img_resize)}.")
    halves = [side / 2 for side in hp.input_img_resize]
    can_halve = not net.margin and all(half in net.valid_sizes for half in halves)
    require(can_halve or not hp.half_size_epochs, f"--half-size-epochs must be 0: half of "
            f"{format_size(hp.input_img_resize)} is not a valid size for {hp.net}. Pass --net UNet1024 and sides of "
            "256, 384, 512, ...")


def warn(hp: Any, hyperparameters: type) -> None:
    usual = USUAL_LEARNING_RATE[hp.optimizer]
    if hp.learning_rate >= 10 * usual:
        print(f"Warning: --learning-rate {hp.learning_rate} is high for {hp.optimizer}; try {usual}.")
    if hp.optimizer != "SGD" and hp.momentum != hyperparameters.momentum:
        print(f"Warning: --momentum {hp.momentum} has no effect on {hp.optimizer}; only SGD uses it.")


def images_per_step(hp: Any, processes: int) -> int:
    """The effective batch size: images per optimizer step, over all processes."""
    return hp.batch_size * hp.accumulate_steps * processes


def saved_runs(output_dir: Path, holding: str = "last.pt") -> list[Path]:
    """The folders of the runs in output_dir that hold that file, from the first to the last begun."""
    return [saved.parent for saved in sorted((output_dir / "models").glob(f"model_[0-9]*/{holding}"))]


def find_run(resume: str, output_dir: Path) -> Path:
    """The folder that --resume names: itself, or for "last" that of the last run begun in output_dir."""
    if resume == "last":
        runs = saved_runs(output_dir)
        require(len(runs) > 0, f"There is no run to resume in {output_dir / 'models'}.")
        return runs[-1]
    folder = Path(resume).parent if Path(resume).name == "last.pt" else Path(resume)
    require((folder / "last.pt").exists(), f"{folder} is not a run to resume: it has no last.pt. Pass a folder such as "
            "output/models/model_<time>.")
    return folder if folder.name.strip(".") else folder.resolve()


def load_run(resume: str, output_dir: Path) -> tuple[Path, dict]:
    """The folder that --resume names, and what its last.pt holds besides tensors."""
    folder = find_run(resume, output_dir)
    checkpoint = load_checkpoint(folder / "last.pt")
    keys = ("hyperparameters", "options", "split", "metrics", "world_size")
    require(checkpoint.keys() >= {*keys}, f"{folder / 'last.pt'} was saved by another version of this program, or is "
            "not a checkpoint of it: resume it with that version, or start a new run.")
    return folder, {key: checkpoint[key] for key in keys}


def resumed(folder: Path, checkpoint: dict, hyperparameters: type, args: Sequence[str] | None, named: bool) -> tuple:
    """The hyperparameters and options of a run that is resumed with this command line. Raises UserError if they would
    make it another training. named: whether --resume names the run, rather than the last one.
    """
    try:
        began = from_dict(hyperparameters, checkpoint["hyperparameters"]), from_dict(RunOptions, checkpoint["options"])
    except (TypeError, AttributeError):
        raise UserError(f"{folder / 'last.pt'} was saved by another version of this program: resume it with that "
                        "version, or start a new run.") from None
    hp, options = parse(hyperparameters, args, default=(began[0], replace(began[1], resume=str(folder))))
    options = replace(options, resume=str(folder))
    check(hp, options, is_new=False)
    done = len(checkpoint["metrics"])
    earlier = "" if named or done else earlier_run(options.output_dir)
    if earlier:
        print(f"{folder} has not been trained for a whole epoch.{earlier}")
    before, now = images_per_step(began[0], checkpoint["world_size"]), images_per_step(hp, distributed.WORLD_SIZE)
    if checkpoint["world_size"] != distributed.WORLD_SIZE:
        print(f"World size {checkpoint['world_size']} -> {distributed.WORLD_SIZE}: "
              f"{before} images per optimizer step until now, {now} from here on.")
    trains = hp.epochs > done and not options.score_only
    free = FREE_HYPERPARAMETERS | (set() if trains else {"threshold"})  # which decides what epoch is the best
    free |= {"batch_size", "accumulate_steps"} if now == before else set()
    require_same_training(folder, began, hp, options, free)
    ending = f"pass --epochs {done} to end here, " if done > hp.half_size_epochs else ""
    require(hp.epochs in (began[0].epochs, done) or hp.schedule == "constant",
            f"--epochs must stay {began[0].epochs} in {folder}, whose learning rate falls over that many: omit it, "
            f"{ending}or start a new run, without --resume.")
    require(done > 0 or not options.score_only, f"{folder} cannot be scored yet: it has not been trained for a whole "
            f"epoch. Resume it without --score-only.{earlier}")
    return (replace(hp, epochs=done) if options.score_only else hp), options


def require_same_training(folder: Path, began: tuple, hp: Any, options: RunOptions, free: set[str]) -> None:
    """Raise UserError if a hyperparameter that is not `free`, or an option that is fixed, differs from the start."""
    pairs = [(began[0], hp, name) for name in vars(hp) if name not in free | {"augment_img"}]
    pairs += [(began[0].augment_img, hp.augment_img, name) for name in vars(hp.augment_img)]
    pairs += [(began[1], options, name) for name in sorted(FIXED_OPTIONS)]
    for then, now, name in pairs:
        require(getattr(now, name) == getattr(then, name), f"--{name.replace('_', '-')} must stay "
                f"{getattr(then, name)} in {folder}, not {getattr(now, name)}: omit it, or start a new run, without "
                "--resume.")


def earlier_run(output_dir: Path) -> str:
    """A hint at the last run that was trained for an epoch, if there is one."""
    trained = saved_runs(output_dir, holding="metrics.csv")
    return f" An earlier run has: --resume {shlex.quote(str(trained[-1]))}" if trained else ""


def from_dict(kind: type, saved: dict[str, Any]) -> Any:
    """The instance of a dataclass whose fields were saved, tuples as lists and paths as text. Raises TypeError if the
    fields are others.
    """
    values, default = dict(saved), kind()
    if values.keys() != {each.name for each in fields(kind)}:
        raise TypeError("other fields")
    for name, value in values.items():
        its_default = getattr(default, name)
        if is_dataclass(its_default):
            values[name] = from_dict(type(its_default), value)
        elif isinstance(its_default, tuple | Path):
            values[name] = type(its_default)(value)
    return kind(**values)
