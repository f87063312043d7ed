"""U-Net on Kaggle's Carvana Image Masking Challenge: find the car in an image. Read this file from top to bottom.

Edit the hyperparameters below, or override them for one run (python main.py --help). The tutorial's two setups:

    python main.py
    python main.py --net UNet1024 --input-img-resize 1024 1024 --output-img-resize 1024 1024 \
        --optimizer RMSprop --learning-rate 0.0002 --batch-size 2

README.md has a third one. Several GPUs: torchrun --standalone --nproc_per_node=4 main.py
Resume the latest run, from its last complete epoch: python main.py --resume last
"""

from dataclasses import dataclass
from typing import Literal

from torch.utils.data import DataLoader

import helpers
from callbacks.console import ConsoleCallback
from callbacks.model_saver import ModelSaverCallback
from callbacks.predictions_saver import PredictionsSaverCallback
from callbacks.scorer import ScorerCallback
from callbacks.tensorboard import TensorboardLoggerCallback, TensorboardVisualizerCallback
from data.cache import open_cache
from data.dataset import TestImageDataset, TrainImageDataset
from data.fetcher import DatasetFetcher
from data.sampler import ShardedRandomSampler
from img.augmentation import Augmentation
from img.transformer import resize_size
from nn.classifier import CarvanaClassifier
from nn.optimizer import make_optimizer, make_scheduler
from nn.unet import make_net
from runtime.run import Run, launch


@dataclass
class Hyperparameters:
    """What makes a training what it is. Sizes are (height, width)."""

    # Images and masks
    net: Literal["UNetOriginal", "UNet1024"] = "UNetOriginal"  # the paper's net, or a deeper one for large images
    input_img_resize: tuple[int, int] = (572, 572)  # size of the images that enter the net
    output_img_resize: tuple[int, int] = (388, 388)  # size of the masks that leave it
    padding: Literal["reflect", "stretch"] = "reflect"  # reflect the image past the mask, like the paper, or stretch it
    soft_labels: bool = True  # label an edge pixel with the fraction of it that is car, not with 0 or 1
    augment_img: Augmentation = Augmentation(flip=True, shift=0.0625, scale=0.1, rotation=5.0)  # img/augmentation.py
    validation_size: float = 0.2  # fraction of the cars (not of the images) to validate on
    sample_size: float | None = None  # fraction of the cars to use at all; None: all of them
    # Training
    batch_size: int = 3  # images per batch, in each process
    accumulate_steps: int = 1  # batches per optimizer step (gradient accumulation)
    epochs: int = 50  # passes over the training images
    half_size_epochs: int = 0  # number of epochs, from the first, at half the height and width (UNet1024 only)
    optimizer: Literal["SGD", "RMSprop", "AdamW"] = "SGD"  # SGD as in the paper
    learning_rate: float = 0.01  # the peak, if there is a schedule; 0.0002 suits RMSprop, 0.001 AdamW
    momentum: float = 0.99  # for SGD only
    weight_decay: float = 0.0  # on the kernels of convolutions; 0.01 suits AdamW
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"  # of the learning rate, per step
    warmup_epochs: float = 0.0  # linear warmup of the learning rate; not for one_cycle, which has its own
    grad_clip: float = 0.0  # maximum norm of the gradient, such as 1; 0: off
    edge_weight: float = 1.0  # weight of pixels near an edge in the cross entropy, such as 3; the others have 1
    ema_decay: float = 0.0  # evaluate with an exponential moving average (EMA) of the weights, such as 0.99; 0: off
    seed: int = 0  # for the split, the initial weights, the order of the images and their augmentation
    # Prediction
    threshold: float = 0.5  # a pixel is car where its probability is above this
    tta: bool = False  # test-time augmentation: average the predictions of the image and a flipped, shifted view


def main(hp: Hyperparameters, run: Run) -> None:  # run: folders, machine, options and, to resume, the split
    # 1. Get the paths of images (X) and masks (y). No car is in both training and validation
    ds_fetcher = DatasetFetcher(run.layout, run.known_reader)
    ds_fetcher.download_dataset(test_images=run.predict)
    X_train, y_train, X_valid, y_valid = ds_fetcher.get_train_files(
        hp.sample_size, hp.validation_size, hp.seed, split=run.split)
    full_x_test = ds_fetcher.get_test_files(hp.sample_size, hp.seed, predict=run.predict)  # empty with --no-predict

    # 2. Define the net. The U-Net paper's images have 1 channel, ours have 3 (red, green, blue)
    helpers.seed_everything(hp.seed)
    net = make_net(hp.net, (3, *hp.input_img_resize), run.weights)  # random weights or, with --weights, a run's
    classifier = CarvanaClassifier(
        net, hp.epochs, run.machine, threshold=hp.threshold, seed=hp.seed, accumulate_steps=hp.accumulate_steps,
        grad_clip=hp.grad_clip, ema_decay=hp.ema_decay, edge_weight=hp.edge_weight)
    optimizer = make_optimizer(net, hp.optimizer, hp.learning_rate, hp.momentum, hp.weight_decay)
    run.announce(ds_fetcher, net, full_x_test)

    # 3. Decode images and masks once, and read batches of them (run.loading: batch size). Only training images are
    #    shuffled, and augmented by train_ds.prepare() on the device
    sizes, reader = (hp.input_img_resize, hp.output_img_resize, hp.padding), ds_fetcher.reader
    cache = open_cache(reader, X_train + X_valid, y_train + y_valid, resize_size(*sizes), run.cache_dir)
    train_ds = TrainImageDataset(
        X_train, y_train, *sizes, cache, X_transform=hp.augment_img, soft_labels=hp.soft_labels,
        half_size_epochs=hp.half_size_epochs, seed=hp.seed)
    train_loader = DataLoader(train_ds, sampler=ShardedRandomSampler(train_ds, hp.seed), **run.loading)
    valid_loader = run.eval_loader(TrainImageDataset(X_valid, y_valid, *sizes, cache))

    # 4. Train on cross entropy plus soft Dice loss. After each epoch the callbacks save it, log it, and print a line
    model_saver_cb = ModelSaverCallback(run.folder, hp, run.options, ds_fetcher.split, reader, run.seen)
    tb_viz_cb = TensorboardVisualizerCallback(run.logs_dir / "tb_viz" / run.name)
    tb_logs_cb = TensorboardLoggerCallback(run.logs_dir / "tb_logs" / run.name, hp)
    console_cb = ConsoleCallback()
    model_saver_cb.resume(classifier, optimizer, run.resumed)  # if the run is resumed: loads last.pt and its epoch
    scheduler = make_scheduler(
        optimizer, hp.schedule, hp.epochs, hp.warmup_epochs,
        steps_per_epoch=classifier.steps_per_epoch(train_loader), done=classifier.epoch)
    callbacks = run.training_callbacks(model_saver_cb, tb_viz_cb, tb_logs_cb, console_cb)  # --score-only: none
    classifier.train(train_loader, valid_loader, optimizer, scheduler, callbacks)  # --score-only: no epoch
    del train_loader, valid_loader  # shuts down their workers

    # 5. Score the epoch with the highest validation Dice as Kaggle would, at the original size of the masks
    classifier.restore_model(model_saver_cb.best)
    scorer_cb = ScorerCallback(X_valid, y_valid, hp.threshold, ds_fetcher.groups, reader)
    classifier.predict(run.eval_loader(TestImageDataset(X_valid, *sizes, reader, hp.tta)), [scorer_cb], title="score")
    scorer_cb.report(classifier, to=[model_saver_cb, tb_logs_cb])  # prints the score, and has it saved and logged

    # 6. Predict the test images with the same weights, and save their masks in Kaggle's format
    pred_saver_cb = PredictionsSaverCallback(run.submission, ds_fetcher.image_size, hp.threshold)
    classifier.predict(run.eval_loader(TestImageDataset(full_x_test, *sizes, reader, hp.tta)), [pred_saver_cb])
    pred_saver_cb.close_saver()
    run.print_next_step(ds_fetcher, scorer_cb)


if __name__ == "__main__":
    launch(main, Hyperparameters)  # reads and checks the command line, starts or resumes a run: runtime/run.py
