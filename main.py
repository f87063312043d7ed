"""U-Net on Kaggle's Carvana Image Masking Challenge: find the car in a photo, pixel by pixel. Read from here downwards.

Change the hyperparameters below, or for one run on the command line. The tutorial's two setups are

    python main.py
    python main.py --net UNet1024 --input-img-resize 1024 1024 --output-img-resize 1024 1024 \
        --optimizer RMSprop --learning-rate 0.0002 --batch-size 2

and README.md has one that scores higher.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Literal

from torch.utils.data import DataLoader

import helpers
import img.augmentation as aug
from callbacks.model_saver import ModelSaverCallback
from callbacks.predictions_saver import PredictionsSaverCallback, check_submission
from callbacks.scorer import ScorerCallback
from callbacks.tensorboard import TensorboardLoggerCallback, TensorboardVisualizerCallback
from data.check import check_data
from data.dataset import TestImageDataset, TrainImageDataset, format_size
from data.fetcher import DatasetFetcher
from data.sampler import ShardedRandomSampler, shard
from nn.classifier import CarvanaClassifier
from nn.optimizer import make_optimizer, make_scheduler
from nn.unet import NETS
from runtime import distributed, errors, files, machine
from runtime.run import from_command_line, images_per_step


@dataclass
class Hyperparameters:
    """Train a U-Net to find the car in a photo, then write its masks for Kaggle."""

    net: Literal["UNetOriginal", "UNet1024"] = "UNetOriginal"  # the paper's net, or the deeper one for large images
    input_img_resize: tuple[int, int] = (572, 572)  # height and width of the images that enter the net
    output_img_resize: tuple[int, int] = (388, 388)  # height and width of the masks that leave it
    padding: Literal["reflect", "stretch"] = "reflect"  # where masks are smaller than images: mirror or stretch photos
    soft_labels: bool = True  # an edge pixel is labeled by the fraction of it that is car, not 0 or 1
    batch_size: int = 3  # images that the net sees at once, in each process
    accumulate_steps: int = 1  # batches that add up to one step: a larger batch in the same memory
    epochs: int = 50  # passes over the training photos
    half_size_epochs: int = 0  # the first epochs, at half the height and width (UNet1024, multiples of 128)
    threshold: float = 0.5  # a pixel is car where its probability is above this
    validation_size: float = 0.2  # share of the cars (never of the images) kept to validate on
    sample_size: float | None = None  # share of the cars, those to predict too, to work on; None is all
    optimizer: Literal["SGD", "RMSprop", "AdamW"] = "SGD"  # RMSprop wants a rate of 0.0002, AdamW of 0.001
    learning_rate: float = 0.01  # factor of each step; with a schedule, its peak
    momentum: float = 0.99  # of SGD
    weight_decay: float = 0.0  # shrinks the weights of convolutions: AdamW wants 0.01; in the others it is L2
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"  # of the learning rate; the last two end at 0
    warmup_epochs: float = 0.0  # first epochs, in which the learning rate climbs; one_cycle climbs by itself
    grad_clip: float = 0.0  # longest norm of a step's gradient, such as 1; 0: no limit
    ema_decay: float = 0.0  # predict with the weights' moving average, 0.99 over some 100 steps; 0: the latest
    flip: bool = True  # train on mirror images too
    shift: float = 0.0625  # share of height and width by which a training photo moves at most
    scale: float = 0.1  # share by which it grows or shrinks at most
    rotation: float = 5.0  # degrees by which it turns at most, either way
    color_jitter: float = 0.0  # share by which its brightness, contrast, saturation and colors change at most
    grayscale: float = 0.0  # share of the training photos that lose their colors
    blur: float = 0.0  # largest Gaussian sigma, in pixels of the resized photo, for half of the training photos
    tta: bool = False  # test-time augmentation: predict each photo twice, once mirrored and half a pixel aside
    predict: bool = True  # write output_dir/submit.csv.gz after training; own photos have predict.py in its place
    dataset: Literal["carvana", "sample", "own"] = "carvana"  # Kaggle's photos in input_dir, cars drawn into it, or own
    group_regex: str | None = None  # own photos: a pattern of what the names of one object's photos share; None: a photo each
    hq_files: bool | None = None  # photos of train_hq/ and test_hq/; None takes what is there, or the smaller ones
    input_dir: Path = Path("input")  # train[_hq]/, train_masks/ and test[_hq]/; gets from Kaggle what is missing
    output_dir: Path = Path("output")  # gets models/ and submit.csv.gz
    logs_dir: Path = Path("logs")  # gets what TensorBoard shows
    device: str | None = None  # cpu, cuda, cuda:1, mps, ...; None takes the accelerator that is there
    precision: Literal["float32", "bfloat16", "float16"] | None = None  # None takes the fastest that is safe
    compile: bool = False  # compile the net with torch.compile: minutes at first, and it may pay on a GPU
    workers: int | None = None  # processes that read photos; None decides by the machine
    seed: int = 0  # of the split, the weights, the order and the augmentation
    resume: str | None = None  # "last", or a run's folder in output_dir/models: go on with it
    score_only: bool = False  # only score the run of resume again, as Kaggle would, on its validation photos
    check_data: bool = False  # only read every photo and mask once, and list all that is wrong

    def __post_init__(self):
        errors.validate(self, batch_size="[1, inf)", accumulate_steps="[1, inf)", epochs="[1, inf)",
                         threshold="(0, 1)", sample_size="(0, 1]", validation_size="(0, 1)",
                         learning_rate="(0, inf)", momentum="[0, 1)", seed="[0, 4294967296)",
                         half_size_epochs="[0, inf)", weight_decay="[0, inf)", warmup_epochs="[0, inf)",
                         grad_clip="[0, inf)", ema_decay="[0, 1)", shift="[0, 1)", scale="[0, 1)", rotation="[0, 180]",
                         color_jitter="[0, 1]", grayscale="[0, 1]", blur="[0, 10]")
        for name, value in (("half-size-epochs", self.half_size_epochs), ("warmup-epochs", self.warmup_epochs)):
            errors.require(value < self.epochs or bool(self.resume), f"--{name} {value} can't be: with --epochs "
                            f"{self.epochs}, no epoch would be left after them.")
        errors.require(not self.warmup_epochs or self.schedule != "one_cycle",
                        f"--warmup-epochs {self.warmup_epochs} can't be: one_cycle climbs by itself. Leave it out, or say "
                        "--schedule cosine.")
        errors.require(not self.score_only or bool(self.resume), "--score-only needs a run: say --resume last too.")


def main(hp: Hyperparameters, split: dict[str, list[str]] | None) -> None:  # the split of a run that goes on
    # 1. The net. What can't work is refused here, before any data is touched
    helpers.seed_everything(hp.seed)
    net = NETS[hp.net]((3, *hp.input_img_resize))  # the paper's images have 1 channel, ours 3: red, green, blue
    made = "{} {}".format(*net.output_size)
    errors.require(hp.output_img_resize == net.output_size, f"--output-img-resize {hp.output_img_resize} can't be: "
                    f"{hp.net} makes masks of {made} from these images, so say --output-img-resize {made}.")
    halves = [side / 2 for side in hp.input_img_resize]
    can_halve = net.output_size == hp.input_img_resize and all(half in net.valid_sizes for half in halves)
    errors.require(can_halve or not hp.half_size_epochs, f"--half-size-epochs {hp.half_size_epochs} can't be: half of "
                    f"these images is no size for {hp.net}. It takes --net UNet1024 and sides of 256, 384, 512, ...")
    if distributed.is_main_process():
        files.make_writable(hp.output_dir, hp.output_dir / "models", hp.logs_dir)

    # 2. The machine, and where torchrun started this program several times, what all of the processes are to this one
    device, precision, workers, reasons = machine.choose_machine(hp.device, hp.precision, hp.workers,
                                                                 distributed.LOCAL_RANK, distributed.LOCAL_WORLD_SIZE)
    images_a_step = images_per_step(hp, distributed.WORLD_SIZE)
    if distributed.WORLD_SIZE > 1:
        reasons += (f"\n            {distributed.WORLD_SIZE} processes, {hp.batch_size} images each at once: a step has "
                    f"{images_a_step}")

    # 3. The data: all views of a car are either trained on or validated on
    ds_fetcher = DatasetFetcher(hp.input_dir, hp.dataset, hp.hq_files, hp.group_regex)
    predict = hp.predict and hp.dataset != "own" and not hp.score_only and not hp.check_data
    with distributed.local_main_process_first():
        ds_fetcher.download_dataset(test_images=predict)
    if hp.check_data:
        return check_data(ds_fetcher, hp.workers) if distributed.is_main_process() else None
    X_train, y_train, X_valid, y_valid = ds_fetcher.get_train_files(hp.sample_size, hp.validation_size, hp.seed, split)
    origin_img_size = ds_fetcher.get_image_size(X_train[0])
    X_test = ds_fetcher.get_test_files(hp.sample_size, hp.seed, origin_img_size) if predict else []
    distributed.require_same("The photos", ["/".join(path.parts[-2:]) for path in [*X_train, *X_valid, *X_test]])
    errors.require(len(X_train) >= distributed.WORLD_SIZE, f"{len(X_train)} photos to train on are too few for "
                    f"{distributed.WORLD_SIZE} processes: say --nproc_per_node={len(X_train)} to torchrun, or less.")

    # 4. After every epoch: a checkpoint, then curves and pictures for TensorBoard
    now = distributed.broadcast(helpers.get_model_timestamp)
    folder = Path(hp.resume or hp.output_dir / "models" / f"model_{now}")
    run = folder.name.removeprefix("model_")
    trained_with = asdict(hp) | {"resume": None, "score_only": False}
    model_saver_cb = ModelSaverCallback(folder, trained_with, ds_fetcher.split)
    tb_viz_cb = TensorboardVisualizerCallback(hp.logs_dir / "tb_viz" / run)
    tb_logs_cb = TensorboardLoggerCallback(hp.logs_dir / "tb_logs" / run, trained_with)
    parameters = sum(weights.numel() for weights in net.parameters())
    print(f"the data    {ds_fetcher.describe(len(X_test))}\n"
          f"the net     {hp.net}, {parameters:,} parameters, from {format_size(hp.input_img_resize)} pixels to "
          f"{format_size(net.output_size)}\nthe machine {reasons}\n"
          f"the folder  {folder}\nwatch it    tensorboard --logdir={quote(str(hp.logs_dir))}\n")

    # 5. Train
    sizes = hp.input_img_resize, hp.output_img_resize
    augment_img = partial(aug.augment_img, flip=hp.flip, shift=hp.shift, scale=hp.scale, rotation=hp.rotation,
                          color_jitter=hp.color_jitter, grayscale=hp.grayscale, blur=hp.blur)
    train_ds = TrainImageDataset(X_train, y_train, *sizes, X_transform=augment_img, padding=hp.padding, seed=hp.seed,
                                 soft_labels=hp.soft_labels, half_size_epochs=hp.half_size_epochs)
    valid_ds = TrainImageDataset(X_valid, y_valid, *sizes, padding=hp.padding)
    loading = dict(batch_size=hp.batch_size, num_workers=workers, persistent_workers=workers > 0,
                   pin_memory=device.type == "cuda", worker_init_fn=errors.quiet_worker)
    classifier = CarvanaClassifier(net, hp.epochs, device, precision, hp.threshold, hp.seed, hp.accumulate_steps,
                                  hp.grad_clip, hp.ema_decay)
    if hp.compile:
        print("The net is compiled, which takes the first steps of training, and of validation, some minutes.")
        for each in {net, classifier.eval_net}:
            each.compile()  # in place: its parameters keep their names, and checkpoints never know
    optimizer = make_optimizer(net, hp.optimizer, hp.learning_rate, hp.momentum, hp.weight_decay)
    wanted = {"SGD": 0.01, "RMSprop": 0.0002, "AdamW": 0.001}[hp.optimizer]
    if hp.learning_rate >= 10 * wanted:
        print(f"Look at this: --learning-rate {hp.learning_rate} is long for {hp.optimizer}, which wants {wanted}.")
    if hp.optimizer != "SGD" and hp.momentum != Hyperparameters.momentum:
        print(f"Look at this: --momentum {hp.momentum} is for SGD, and changes nothing in {hp.optimizer}.")
    train_loader = DataLoader(train_ds, sampler=ShardedRandomSampler(len(train_ds), hp.seed), **loading)
    valid_loader = DataLoader(valid_ds, sampler=shard(len(valid_ds), hp.batch_size), **loading)
    if hp.resume:
        model_saver_cb.resume(classifier, optimizer)
    steps = math.ceil(len(train_ds) / images_a_step)  # in an epoch
    schedule = make_scheduler(optimizer, hp.schedule, hp.epochs * steps, round(hp.warmup_epochs * steps),
                             done=classifier.epoch * steps)
    if not hp.score_only:
        classifier.train(train_loader, valid_loader, optimizer, hp.epochs - classifier.epoch,
                         callbacks=[model_saver_cb, tb_viz_cb, tb_logs_cb], schedule=schedule)
    del train_loader, valid_loader  # which ends the processes that read for them
    best, size = classifier.best, format_size(net.output_size)
    print(f"\nValidation Dice {best['valid_dice']:.4f} in epoch {best['epoch']}, at {size} pixels\n"
          f"the model   {model_saver_cb.best}\nthe curves  {tb_logs_cb.path}\n            {tb_viz_cb.path}\n"
          f"watch them  tensorboard --logdir={quote(str(hp.logs_dir))}")

    # 6. Score the best epoch's weights: validation photos go the way of a submission, and Dice is taken as Kaggle does
    classifier.restore_model(model_saver_cb.best)
    truth = {photo.name: mask for photo, mask in zip(X_valid, y_valid, strict=True)}
    scorer_cb = ScorerCallback(truth, hp.threshold, ds_fetcher.groups)
    valid_ds, own = TestImageDataset(X_valid, *sizes, hp.padding, hp.tta), shard(len(X_valid), hp.batch_size)
    classifier.predict(DataLoader(valid_ds, sampler=own, **loading), callbacks=[scorer_cb], title="score")
    if distributed.is_main_process():
        model_saver_cb.save_score(classifier, scorer_cb.table(), scorer_cb.score)
        tb_logs_cb.log_score(classifier, scorer_cb.score)
        print(f"\n{scorer_cb.report()}\nof each     {model_saver_cb.path / 'score.csv'}\n")

    # 7. Predict with the same weights, and write the masks at the photos' own size
    if predict:
        pred_saver_cb = PredictionsSaverCallback(hp.output_dir / "submit.csv.gz", origin_img_size, hp.threshold)
        test_ds, own = TestImageDataset(X_test, *sizes, hp.padding, hp.tta), shard(len(X_test), hp.batch_size)
        classifier.predict(DataLoader(test_ds, sampler=own, **loading), callbacks=[pred_saver_cb])
        if distributed.is_main_process():
            pred_saver_cb.close_saver()
            check_submission(pred_saver_cb.to_file, [path.name for path in X_test], origin_img_size)
            print(f"the masks   {pred_saver_cb.to_file}\n{ds_fetcher.next_step(pred_saver_cb.to_file)}")
    elif hp.dataset == "own" and distributed.is_main_process():
        as_scored = ["--threshold", str(hp.threshold), "--tta", str(hp.tta)] if hp.resume else []
        print(ds_fetcher.next_step(model_saver_cb.best, scorer_cb.table()["image"].iloc[0], *as_scored))


if __name__ == "__main__":
    with errors.friendly_errors(), distributed.init_distributed():
        main(*from_command_line(Hyperparameters))
