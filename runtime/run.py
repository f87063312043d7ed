"""The command line, its checks, the rules of --resume, and what main() needs besides the hyperparameters."""

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data.check import check_data
from data.fetcher import DatasetFetcher
from data.layout import make_layout
from data.masks import known_reader
from data.sampler import shard
from helpers import format_size, get_model_timestamp
from nn.callback import Callback
from nn.unet import NETS, make_net
from nn.unet_origin import SizeError
from runtime import distributed
from runtime.errors import UserError, advise, check_ranges, friendly_errors, quiet_worker, require
from runtime.files import checkpoint_errors, load_checkpoint, make_writable, saved_runs
from runtime.machine import choose_machine
from runtime.predict_with import predict_with


@dataclass(frozen=True)
class RunOptions:
    """Where and how it runs."""

    dataset: Literal["carvana", "sample", "own"] = "carvana"  # Kaggle's images, drawn cars, or images of your own
    group_regex: str | None = None  # own images: what the file names of one object share; None: an object per image
    mask_values: tuple[str, ...] | None = None  # own: mask values of the object (1 3, "#ff0000", nonzero); None: decide
    hq_files: bool | None = None  # Kaggle's train_hq/ and test_hq/; None: whichever is there
    input_dir: Path = Path("input")  # train[_hq]/, train_masks/, test[_hq]/; what is missing is downloaded
    output_dir: Path = Path("output")  # for models/, cache/, submit.csv.gz and check.png
    logs_dir: Path = Path("logs")  # for TensorBoard
    predict: bool = True  # predict the test images after training (not for --dataset own, which has predict.py)
    device: str | None = None  # cpu, cuda, cuda:1, mps, ...; None: the accelerator of this machine
    precision: Literal["float32", "bfloat16", "float16"] | None = None  # None: the fastest safe one
    compile: bool = False  # use torch.compile: takes a minute or more at first, pays for large images on a GPU
    workers: int | None = None  # processes that read images; None: as many as the machine can spare
    cache: bool = True  # decode images and masks once, to files in output_dir/cache of 4 bytes per pixel
    weights: str | None = None  # start with the net of another run: its folder, or a file such as best.pt
    resume: str | None = None  # "last", or the folder of a run in output_dir/models: continue it
    score_only: bool = False  # with --resume: only score the run's best epoch again
    predict_with: tuple[str, ...] | None = None  # runs: only score and predict, by their nets' mean probabilities
    check_data: bool = False  # only read all images and masks, list all problems, and draw masks to check.png


USUAL_LEARNING_RATE = {"SGD": 0.01, "RMSprop": 0.0002, "AdamW": 0.001}


@dataclass
class Run:
    """Where and how main() runs. folder: output_dir/models/model_<time>.

    split, reader: of a run that is resumed. weights: of the net, to start with. seen: the cars and images that these
    were trained on. models: of --predict-with, path -> checkpoint.
    """

    hp: Any
    options: RunOptions
    folder: Path
    split: dict[str, list[str]] | None = None
    reader: dict[str, Any] | None = None
    weights: dict[str, Tensor] | None = None
    seen: Collection[str] = ()
    models: dict[str, dict[str, Any]] | None = None

    def __post_init__(self):
        hp, options = self.hp, self.options
        self.score_only, self.resumed = options.score_only, self.split is not None
        self.options = replace(options, resume=None, score_only=False)  # what is saved
        self.name, self.logs_dir = self.folder.name.removeprefix("model_"), options.logs_dir
        self.submission = options.output_dir / "submit.csv.gz"
        self.layout = make_layout(options.dataset, options.input_dir, options.hq_files, options.group_regex)
        self.known_reader = known_reader(options.mask_values, self.reader)
        self.predict = options.predict and self.layout.has_test_images and not self.score_only
        self.cache_dir = options.output_dir / "cache" if options.cache and not self.score_only else None
        self.machine = choose_machine(
            options.device, options.precision, options.workers, options.compile, hp.accumulate_steps)
        self.loading = dict(  # of all DataLoaders
            batch_size=hp.batch_size, num_workers=self.machine.workers, persistent_workers=self.machine.workers > 0,
            worker_init_fn=quiet_worker, pin_memory=self.machine.device.type == "cuda")

    def eval_loader(self, dataset: Dataset) -> DataLoader:
        """A loader of the batches of this process, in the order of the data set.

        Their size depends on that of the images alone: any number of processes computes the same.
        """
        batch_size = eval_batch_size(dataset.input_img_resize)
        return DataLoader(dataset, sampler=shard(len(dataset), batch_size), **self.loading | {"batch_size": batch_size})

    def training_callbacks(self, *callbacks: Callback) -> Sequence[Callback]:
        return () if self.score_only else callbacks

    def announce(self, ds_fetcher: DatasetFetcher, net: nn.Module, X_test: Sequence[Path]) -> None:
        valid = ds_fetcher.split.query("part == 'valid'")
        seen = valid["image"].isin(self.seen) | valid["car"].isin(self.seen)
        if seen.any():
            print(f"Warning: {seen.sum()} of {len(valid)} validation images have the name of an image or a car that "
                  "--weights was trained on, so the score may be too high. Pass the --seed of that run.")
        parameters = sum(weights.numel() for weights in net.parameters())
        size, output_size = format_size(net.in_shape[1:]), format_size(net.output_size)
        print(f"data        {ds_fetcher.describe(len(X_test))}")
        print(f"net         {self.hp.net}, {parameters:,} parameters, from {size} pixels to {output_size}")
        print(f"machine     {self.machine.reasons}")
        if distributed.WORLD_SIZE > 1:
            print(f"            {distributed.WORLD_SIZE} processes, {self.hp.batch_size} images per batch in each: "
                  f"{images_per_step(self.hp, distributed.WORLD_SIZE)} per optimizer step")
        print(f"folder      {self.folder}")
        print(f"watch       tensorboard --logdir={shlex.quote(str(self.logs_dir))}\n")

    def print_next_step(self, ds_fetcher: DatasetFetcher, scorer: Any) -> None:
        if distributed.is_main_process() and (self.predict or not self.layout.has_test_images):
            as_scored = ["--threshold", str(self.hp.threshold), "--tta", str(self.hp.tta)] if self.resumed else []
            worst = scorer.table()["image"].iloc[0]
            print(ds_fetcher.next_step(self.submission, self.folder / "best.pt", worst, *as_scored))


def launch(main: Callable[[Any, Run], None], hyperparameters: type) -> None:
    """Run main(hp, run) with the values of the command line. hyperparameters: a dataclass of the defaults."""
    with friendly_errors(), distributed.init_distributed():
        run = from_command_line(hyperparameters)
        if not run.options.check_data:
            with advise(run.hp, run.machine):
                (predict_with if run.models else main)(run.hp, run)
            return
        ds_fetcher = DatasetFetcher(run.layout, run.known_reader)
        ds_fetcher.download_dataset(test_images=False)
        if distributed.is_main_process():
            check_data(ds_fetcher, run.options.output_dir / "check.png")


def from_command_line(hyperparameters: type) -> Run:
    hp, options = parse(hyperparameters)
    name = distributed.broadcast(lambda: distributed.first_name(get_model_timestamp()))
    loaded, folder = {}, options.output_dir / "models" / f"model_{name}"
    # After a restart by torchrun, the run may have been saved
    resume = options.resume or distributed.broadcast(lambda: str(folder) if (folder / "last.pt").exists() else None)
    if options.predict_with is not None:
        check(hp, options)
        loaded = distributed.broadcast(lambda: load_models(options.predict_with))
    elif resume is None:
        check(hp, options)
        for name, value in (("--half-size-epochs", hp.half_size_epochs), ("--warmup-epochs", hp.warmup_epochs)):
            require(value < hp.epochs, f"{name} must be less than --epochs {hp.epochs}, not {value}.")
        if options.weights is not None:
            loaded = distributed.broadcast(lambda: load_weights(options.weights, hp.net))
    else:
        folder, checkpoint = distributed.broadcast(lambda: load_run(resume, options.output_dir))
        hp, options, loaded = continued(folder, checkpoint, hyperparameters)
    if distributed.is_main_process():
        make_writable(options.output_dir)
        if not (options.check_data or options.predict_with):
            make_writable(folder.parent, options.logs_dir)
    usual = USUAL_LEARNING_RATE[hp.optimizer]
    if hp.learning_rate >= 10 * usual:
        print(f"Warning: --learning-rate {hp.learning_rate} is high for {hp.optimizer}; try {usual}.")
    return Run(hp, options, folder, **loaded)


def parse(hyperparameters: type, args: Sequence[str] | None = None,
          default: tuple | None = None) -> tuple[Any, RunOptions]:
    """The command line as hyperparameters and RunOptions. default: a pair of them, for what it leaves out."""
    groups = make_dataclass("Groups", [("hyperparameters", hyperparameters), ("run", RunOptions)])
    default = groups(*(default or (hyperparameters(), RunOptions())))
    parsed = tyro.cli(groups, args=args, default=default, config=(tyro.conf.OmitArgPrefixes,),
                      description="Train a U-Net to find the car in an image, and predict masks for Kaggle.")
    return parsed.hyperparameters, parsed.run


def check(hp: Any, options: RunOptions) -> None:
    """Raise UserError for values that are out of range or cannot be combined."""
    check_ranges(
        hp, validation_size="(0, 1)", sample_size="(0, 1]", batch_size="[1, 1e6]", accumulate_steps="[1, 1e6]",
        epochs="[1, 1e6]", half_size_epochs="[0, inf)", learning_rate="(0, inf)", momentum="[0, 1)",
        weight_decay="[0, inf)", warmup_epochs="[0, inf)", grad_clip="[0, inf)", edge_weight="[1, 1000]",
        ema_decay="[0, 1)", seed="[0, 4294967296)", threshold="(0, 1)")
    check_ranges(hp.augment_img, shift="[0, 1)", scale="[0, 1)", rotation="[0, 180]", color_jitter="[0, 1]",
                 grayscale="[0, 1]", blur="[0, 10]")
    check_ranges(options, workers="[0, 1024]")
    net, size = NETS[hp.net], format_size(hp.input_img_resize)
    try:
        output_size = net.check(hp.input_img_resize)
    except SizeError as error:
        height, width = error.nearest[0]
        raise UserError(f"{error} Pass --input-img-resize {height} {width} "
                        f"--output-img-resize {height - net.margin} {width - net.margin}.") from None
    require(not hp.warmup_epochs or hp.schedule != "one_cycle",
            "--warmup-epochs cannot be combined with --schedule one_cycle, which has its own warmup.")
    require(options.resume or not options.score_only, "--score-only needs a run: pass --resume last too.")
    require(not (options.predict_with and (options.resume or options.weights)),
            "--predict-with trains nothing: omit --resume and --weights.")
    require(options.dataset == "carvana" or not options.hq_files, "--hq-files is for Kaggle's images: omit it.")
    for name in ("group_regex", "mask_values"):
        value = getattr(options, name)
        require(options.dataset == "own" or value is None, f"--{name.replace('_', '-')} {value!r} is for images of "
                "your own: pass --dataset own too, or omit it.")
    require(hp.output_img_resize == output_size, f"--output-img-resize must be {output_size[0]} {output_size[1]}: "
            f"{hp.net} makes masks of that size from images of {size}.")
    has_half_size = net.margin == 0 and all(side / 2 in net.valid_sizes for side in hp.input_img_resize)
    require(has_half_size or not hp.half_size_epochs, f"--half-size-epochs must be 0: half of {size} is not a valid "
            f"size for {hp.net}. Pass --net UNet1024 and sides of 256, 384, 512, ...")


def eval_batch_size(size: tuple[int, int]) -> int:
    """Images of (height, width) per batch that is not trained on: at most 8, and 2^20 pixels."""
    return min(8, max(1, 2**20 // (size[0] * size[1])))


def images_per_step(hp: Any, processes: int) -> int:
    return hp.batch_size * hp.accumulate_steps * processes


def load_weights(path: str, net_name: str) -> dict[str, Any]:
    """The weights of a saved net, with its BatchNorm statistics, and `seen`. Raises UserError if they don't fit."""
    checkpoint = load_checkpoint(path)
    with checkpoint_errors(path, checkpoint), torch.device("meta"):  # which takes no memory
        saved, in_shape = checkpoint["net_name"], checkpoint["in_shape"]
        require(saved == net_name, f"{path} has the weights of {saved}, but the net is {net_name}. Pass --net {saved}.")
        make_net(saved, in_shape).load_state_dict(checkpoint["net"], assign=True)
        print(f"weights     {path}, trained at {format_size(in_shape[1:])} pixels up to epoch {checkpoint['epoch']}")
        return {"weights": checkpoint["net"], "seen": seen_by(checkpoint)}


def seen_by(checkpoint: dict[str, Any]) -> set[str]:
    """The cars and images that a net was trained on, also by the run that its first weights came from."""
    split = pd.DataFrame(checkpoint["split"])
    trained = split[split["part"] == "train"]
    return {*trained["car"], *trained["image"], *checkpoint.get("seen", ())}


def load_models(paths: Sequence[str]) -> dict[str, Any]:
    """The checkpoints for --predict-with, all that they have `seen`, and the first one's reader."""
    require(paths, "--predict-with needs at least one run, such as output/models/model_<time>.")
    models, seen, readers = {path: load_checkpoint(path) for path in paths}, set(), []
    for path, checkpoint in models.items():
        with checkpoint_errors(path, checkpoint):
            seen |= seen_by(checkpoint)
            readers.append(checkpoint["reader"])
    return {"models": models, "seen": seen, "reader": readers[0]}


def load_run(resume: str, output_dir: Path) -> tuple[Path, dict]:
    """The folder that --resume names, and what the model saver added to its last.pt."""
    runs = saved_runs(output_dir) if resume == "last" else [Path(resume)]
    require(runs, f"There is no run to resume in {output_dir / 'models'}.")
    folder = runs[-1].parent if runs[-1].name == "last.pt" else runs[-1]
    require((folder / "last.pt").exists(), f"{folder} is not a run to resume: it has no last.pt. Pass a folder such as "
            "output/models/model_<time>.")
    checkpoint = load_checkpoint(folder / "last.pt")
    keys = ("hyperparameters", "options", "split", "reader", "metrics", "world_size", "version", "seen")
    return folder, {key: checkpoint[key] for key in keys if key in checkpoint}


def continued(folder: Path, checkpoint: dict, hyperparameters: type) -> tuple:
    """Hyperparameters, options, and what else a resumed Run has. Raises UserError if they make it another training."""
    with checkpoint_errors(folder / "last.pt", checkpoint):
        began = from_dict(hyperparameters, checkpoint["hyperparameters"])
        began_options = from_dict(RunOptions, checkpoint["options"])
        if folder.parent.name == "models":  # which may have been moved
            began_options = replace(began_options, output_dir=folder.parent.parent)
        done, processes = len(checkpoint["metrics"]), checkpoint["world_size"]
        loaded = {key: checkpoint[key] for key in ("split", "reader", "seen")}
    hp, options = parse(hyperparameters, default=(began, began_options))
    before, now = images_per_step(began, processes), images_per_step(hp, distributed.WORLD_SIZE)
    free = {"batch_size", "accumulate_steps"} if now == before else set()
    if hp.epochs <= done or options.score_only:  # it trains no more; before, it decides which epoch is the best
        free.add("threshold")
    values = settings(hp, options)
    for name, value in settings(began, began_options).items():
        require(name in free or values[name] == value, f"--{name.replace('_', '-')} must stay {value} in {folder}, not "
                f"{values[name]}: omit it, or start a new run.")
    if now != before:
        print(f"Warning: {now} images per optimizer step from here on, not {before}.")
    check(hp, options)
    require(hp.epochs in (began.epochs, done) or hp.schedule == "constant",
            f"--epochs must stay {began.epochs} in {folder}, whose learning rate falls over that many: omit it, "
            "or start a new run.")
    require(done > 0 or not options.score_only,
            f"{folder} has no complete epoch to score. Resume it without --score-only.")
    return replace(hp, epochs=done) if options.score_only else hp, options, loaded


def settings(hp: Any, options: RunOptions) -> dict[str, Any]:
    """The values, by name, that a resumed run must keep."""
    kept = vars(hp) | vars(hp.augment_img)
    data_options = ("dataset", "group_regex", "hq_files", "mask_values", "weights")
    kept |= {name: getattr(options, name) for name in data_options}
    return {name: value for name, value in kept.items() if name not in ("epochs", "tta", "augment_img")}


def from_dict(kind: type, saved: dict[str, Any]) -> Any:
    """A dataclass instance from its saved fields: tuples were saved as lists, paths as text."""
    values = dict(saved)
    for name, default in vars(kind()).items():
        value = values[name]  # or KeyError; below, TypeError if there are others
        if is_dataclass(default):
            values[name] = from_dict(type(default), value)
        elif isinstance(value, list):
            values[name] = tuple(value)
        elif isinstance(default, Path):
            values[name] = Path(value)
    return kind(**values)
