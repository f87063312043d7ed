"""CarvanaClassifier: the loop that trains a net, validates it after every epoch, and predicts with it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

import helpers
from img.tta import merge_tta
from nn.losses import SoftDiceLoss, binary_cross_entropy
from nn.metrics import dice_per_image, pixel_accuracy_per_image
from nn.optimizer import ModelEma
from runtime import distributed, errors, files

if TYPE_CHECKING:
    from nn.callback import Callback

LOG_INTERVAL = 10  # steps between two looks at the loss; in between nothing waits for the device


class CarvanaClassifier:
    """Trains `net`, validates it and predicts with it. Where there are several processes, each one does its share.

    net: takes images (N, 3, H, W) of 0..1 and returns logits (N, h, w); has in_shape, output_size and valid_sizes as
        UNetOriginal has, and stands in NETS of nn/unet.py, by whose names checkpoints tell what they are of.
    epochs: how many the whole training has; one call of train() may run fewer of them.
    device, precision: where the net computes, and the torch type of its products there (see helpers).
    threshold: a pixel is car where its probability is above this.
    seed: what an epoch draws from torch's generator is a function of (seed, epoch).
    accumulate_steps: so many batches of a training loader make one step, the same as all their images at once (but for
        BatchNorms, which know one batch at a time). The batches of all processes (see processes.py) count as one.
    grad_clip: a gradient whose norm, over all weights, is longer than this is shortened to it; 0 leaves all.
    ema_decay: validate, save and predict with the moving average of the weights (see nn.optimizer); 0: with the latest.
    """

    RESUME_KEYS = ("raw_net", "optimizer", "scaler", "valid_dice")  # what predicting needs nothing of in a checkpoint
    TIMING_METRICS = ("train_images_per_second", "valid_images_per_second", "seconds")  # the metrics that no seed repeats

    def __init__(
        self,
        net: nn.Module,
        epochs: int,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
        threshold: float = 0.5,
        seed: int = 0,
        accumulate_steps: int = 1,
        grad_clip: float = 0.0,
        ema_decay: float = 0.0,
    ):
        self.device, self.precision, self.threshold, self.seed = torch.device(device), precision, threshold, seed
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self._pinned = self.device.type == "cuda"  # elsewhere a batch could be freed while it is being copied
        self.model = distributed.wrap_ddp(self.net, self.device)  # what trains; the net is what is saved
        self.epochs, self.epoch = epochs, 0
        self.metrics: list[dict[str, float]] = []  # one entry an epoch
        self.valid_dice = torch.empty(0)  # of each validation photo in the latest epoch
        self.optimizer: torch.optim.Optimizer | None = None
        self.schedule: LRScheduler | None = None  # None: the optimizer's own learning rate at each step
        self.accumulate_steps, self.grad_clip = accumulate_steps, grad_clip
        self.ema = ModelEma(self.net, ema_decay) if ema_decay else None
        if precision == torch.float16:  # the scaler may leave out the first steps, but the schedule counts them
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.soft_dice_loss = SoftDiceLoss()

    def train(
        self,
        train_loader: DataLoader,
        valid_loader: DataLoader,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        callbacks: Sequence[Callback] = (),
        schedule: LRScheduler | None = None,
    ) -> None:
        """Train for `epochs` more epochs, or for none. The loaders yield uint8 images (N, 3, H, W) and masks (N, h, w).

        A mask's pixel is 255 where all of it is car, 0 where none is. A sampler or a data set of train_loader that has
        set_epoch, as DistributedSampler has, is told each epoch. The schedule of the optimizer is stepped at each step.
        Callbacks are called in the first process alone.
        """
        self.optimizer, self.schedule = optimizer, schedule
        callbacks = callbacks if distributed.is_main_process() else ()
        with self._ending_well(train_loader, callbacks):
            for callback in callbacks:
                callback.on_train_begin(self, valid_loader)
            if epochs > 0:
                print(self._heading())
            for _ in range(epochs):
                self._train_epoch(train_loader, valid_loader)
                for callback in callbacks:
                    callback.on_epoch_end(self, self.epoch, self.metrics[-1])
                tqdm.write(self._epoch_line(self.metrics[-1], self._minutes_left(train_loader)))
            for callback in callbacks:
                callback.on_train_end(self)

    def predict(self, test_loader: DataLoader, callbacks: Sequence[Callback] = (), title: str = "predict") -> None:
        """Predict all photos of a loader that yields images, as predict_probs takes them, and their names.

        title: what the progress bar calls it.

        Each callback gets a batch's names and its probabilities, float32 on the CPU, in a thread of its own:
        while it writes a batch, the net predicts the next one. What it makes of them, in the process that predicts
        them, goes to the first process, whose callbacks get it in the order of the batches.
        """

        def write_batch(names: Sequence[str], probs: Tensor) -> None:
            made = [callback.on_predict_batch(names, probs) for callback in callbacks]
            for of_process in distributed.gather((len(names), made)):
                images, parts = of_process
                for callback, part in zip(callbacks, parts, strict=True):
                    callback.on_batch_gathered(part)
                bar.update(images)

        bar = helpers.Progress(total=len(test_loader.dataset), desc=title, unit="img", leave=True)
        with self._ending_well(test_loader, callbacks), bar, ThreadPoolExecutor(max_workers=1) as writer:
            handed_on = writer.submit(bar.update, 0)
            for images, names in self._lockstep(test_loader):
                probs = self.predict_probs(images).cpu()
                handed_on.result()  # or the error that it ended with
                handed_on = writer.submit(write_batch, names, probs)
            handed_on.result()

    @torch.inference_mode()
    def predict_probs(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, H, W) -> the probability of car at each pixel of their masks, (N, h, w) float32.

        Of photos and their second views (see img/tta.py), (N, 2, 3, H, W) -> one answer each, (N, 2h, 2w).
        """
        net = self.eval_net.eval()
        if images.ndim == 4:
            return self._logits(images, net).float().sigmoid()
        return merge_tta(torch.stack([self._logits(view, net).float().sigmoid() for view in images.unbind(1)], dim=1))

    def restore_model(self, path: str | Path, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Predict with the weights of a checkpoint; with a training's optimizer, go on where it was saved.

        The first process alone reads it.

        Raises UserError where it is no checkpoint, or one of another net.
        """
        checkpoint = distributed.broadcast(lambda: files.load_checkpoint(path))
        try:
            name, in_shape = checkpoint["net_name"], tuple(checkpoint["in_shape"])
            fits = (name, in_shape) == (type(self.net).__name__, self.net.in_shape)
            if fits and optimizer is not None:
                averages = self.ema is not None
                other = f"{path} was trained with{'out' * averages} an average of the weights (ema_decay); go on so."
                errors.require((checkpoint["raw_net"] is not None) == averages, other)
            if fits:
                self.eval_net.load_state_dict(checkpoint["net"])
            if fits and optimizer is not None:
                if self.ema is not None:
                    self.net.load_state_dict(checkpoint["raw_net"])
                    self.ema.updates = checkpoint["ema_updates"]
                for saved, group in zip(checkpoint["optimizer"]["param_groups"], optimizer.param_groups, strict=True):
                    if "fused" in group:  # earlier versions fused none
                        saved["fused"] = group["fused"]
                optimizer.load_state_dict(checkpoint["optimizer"])
                if checkpoint["scaler"] and self.scaler.is_enabled():
                    self.scaler.load_state_dict(checkpoint["scaler"])
                self.optimizer, self.epoch, self.metrics = optimizer, checkpoint["epoch"], checkpoint["metrics"]
                self.valid_dice = checkpoint.get("valid_dice", self.valid_dice)  # earlier versions kept none
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if errors.ran_out_of_memory(error):
                raise
            raise errors.UserError(f"{path} is no checkpoint of this program ({type(error).__name__}).") from error
        errors.require(
            fits,
            f"{path} is a checkpoint of {name} at {in_shape[2]}x{in_shape[1]}, not of {type(self.net).__name__} at "
            f"{self.net.in_shape[2]}x{self.net.in_shape[1]}; choose the net and the size that it was trained with.",
        )

    @property
    def eval_net(self) -> nn.Module:
        """The net that validates and predicts, and whose weights are saved as "net"."""
        return self.net if self.ema is None else self.ema.net

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the epoch with the best validation Dice, the first of equals."""
        return max(self.metrics, key=lambda metrics: metrics["valid_dice"])

    def state_dict(self) -> dict:
        """All that a training needs to go on, in types that torch.load(weights_only=True) reads."""
        return {
            "net_name": type(self.net).__name__,
            "in_shape": list(self.net.in_shape),
            "net": self.eval_net.state_dict(),
            "raw_net": None if self.ema is None else self.net.state_dict(),
            "ema_updates": None if self.ema is None else self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "metrics": self.metrics,
            "valid_dice": self.valid_dice,
        }

    def _criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy(logits, targets) + self.soft_dice_loss(logits, targets)

    def _logits(self, images: Tensor, net: nn.Module) -> Tensor:
        """uint8 (N, 3, H, W) on any device -> logits (N, h, w); what was 0..255 enters the net as 0..1."""
        images = images.to(self.device, non_blocking=self._pinned, memory_format=torch.channels_last).float() / 255
        enabled = self.precision != torch.float32 and len(images) > 0  # SyncBatchNorm takes none's to be float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=enabled):
            return net(images)

    def _train_epoch(self, train_loader: DataLoader, valid_loader: DataLoader) -> None:
        self.epoch += 1
        helpers.seed_everything(self.seed, self.epoch)
        for part in (train_loader.sampler, train_loader.dataset):
            if hasattr(part, "set_epoch"):
                part.set_epoch(self.epoch)
        start = time.perf_counter()
        metrics = {"epoch": self.epoch, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        metrics |= self.run_epoch(train_loader, "train")
        for net in dict.fromkeys((self.net, self.eval_net)):  # in the same order in all processes
            distributed.average_buffers(net)
        metrics |= self.run_epoch(valid_loader, "valid")
        metrics["seconds"] = time.perf_counter() - start
        self.metrics.append(metrics)

    def run_epoch(self, loader: DataLoader, phase: str) -> dict[str, float]:
        """One pass over the loader, in which the net learns if `phase` is "train" -> means over the images."""
        training = phase == "train"
        net = self.model.train() if training else self.eval_net.eval()
        totals, dice = Meter(), []
        start = time.perf_counter()
        title = f"{phase} {self.epoch}/{self.epochs}"
        with helpers.Progress(total=len(loader.dataset), desc=title, unit="img") as bar:
            batches = self._lockstep(loader) if training else self._batches(loader)
            for batch, (images, masks) in enumerate(batches, start=1):
                targets = masks.to(self.device, non_blocking=self._pinned).float() / 255
                if training:
                    loss, logits = self._train_step(images, targets, batch, loader)
                else:
                    with torch.no_grad():
                        logits = self._logits(images, net)
                        loss = self._criterion(logits, targets)
                bar.update(self._images_until(batch, loader) - bar.n)
                if not len(images):
                    continue
                of_images = totals.add(loss, logits, targets, self.threshold)
                dice += [] if training else [of_images]
                if batch == 1 or batch % LOG_INTERVAL == 0 or batch == len(loader):
                    bar.set_postfix(self._read(totals, phase, batch, loader), refresh=False)
        totals.all_reduce()
        if not training:
            self.valid_dice = self._gather_per_image(dice, loader)
        means = {f"{phase}_{name}": value for name, value in totals.means().items()}
        return means | {f"{phase}_images_per_second": len(loader.dataset) / (time.perf_counter() - start)}

    @staticmethod
    def _gather_per_image(values: list[Tensor], loader: DataLoader) -> Tensor:
        """The values of each batch of a loader whose order is always the same -> those of all images, in all processes.

        They come in the order of the data set, float32 on the CPU.
        """
        of_each = torch.zeros(len(loader.dataset))
        if values:
            of_each[list(loader.sampler)] = torch.cat(values).float().cpu()
        distributed.all_reduce(of_each)
        return of_each

    @staticmethod
    def _images_until(batch: int, loader: DataLoader) -> int:
        """How many all processes have seen at the end of that batch of a pass, which counts from 1."""
        return min(batch * loader.batch_size * distributed.WORLD_SIZE, len(loader.dataset))

    def _lockstep(self, loader: DataLoader) -> Iterator[tuple[Tensor, Sequence]]:
        """The loader's batches, and an empty one where another process still has one: all of them step together."""
        most = math.ceil(len(loader.dataset) / (loader.batch_size * distributed.WORLD_SIZE))  # the first process has them
        images, others = torch.empty(0, *self.net.in_shape), []
        for images, others in self._batches(loader):
            yield images, others
        for _ in range(most - len(loader)):
            yield images[:0], others[:0]

    def _batches(self, loader: DataLoader) -> Iterator[tuple[Tensor, Sequence]]:
        """The loader's batches. Raises UserError where a process is ended while it hands one over."""
        try:
            yield from loader
        except (EOFError, ConnectionError) as error:  # a moment later, the loader itself would have noticed
            raise errors.UserError(self._reader_ended(loader)) from error

    def _train_step(self, images: Tensor, targets: Tensor, batch: int, loader: DataLoader) -> tuple[Tensor, Tensor]:
        """Add a batch's gradient to those of its step, and make the step behind its last batch. They count from 1."""
        before = (batch - 1) // self.accumulate_steps * self.accumulate_steps  # batches of the steps before
        of_step = self._images_until(before + self.accumulate_steps, loader) - self._images_until(before, loader)
        ends = batch - before == self.accumulate_steps or self._images_until(batch, loader) == len(loader.dataset)
        if batch == before + 1:
            self.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if ends or distributed.WORLD_SIZE == 1 else self.model.no_sync():  # the gradients meet at the end
            logits = self._logits(images, self.model)
            loss = self._criterion(logits, targets) if len(images) else logits.sum()
            # The gradient is the mean over the step's images in all processes, each of which has the same weight in it
            self.scaler.scale(loss * (len(images) * distributed.WORLD_SIZE / of_step)).backward()
        if ends:
            self._step()
        return loss, logits

    def _step(self) -> None:
        if self.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()
        if self.ema is not None:
            self.ema.update(self.net)

    def _read(self, totals: Meter, phase: str, step: int, loader: DataLoader) -> dict[str, str]:
        """What the bar shows of the means so far. Raises UserError if a loss since the last look was not finite."""
        bad = totals.read()
        if bad is not None:
            advice = "As it is it would come to this again: start another run with a lower --learning-rate"
            if self.precision != torch.float32:
                advice += ", or go on with --precision float32"
            raise errors.UserError(
                f"The loss was not finite at step {step - bad} of epoch {self.epoch} ({phase})"
                f"{photos_of_step(loader, step - bad)}, so training stopped. {advice}."
            )
        means = totals.means()
        return {"loss": f"{means['loss']:.3f}", "dice": f"{means['dice']:.4f}"}

    @contextmanager
    def _ending_well(self, loader: DataLoader, callbacks: Sequence[Callback]) -> Iterator[None]:
        """Whatever ends the block early, the callbacks close what is open; says what to change where that helps."""
        try:
            yield
        except BaseException as error:
            for callback in callbacks:
                callback.on_exception()
            advice = self._advice_on_compiling(error) or self._advice_on_memory(error, loader)
            if advice:
                raise errors.UserError(advice) from error
            raise

    @staticmethod
    def _advice_on_compiling(error: BaseException) -> str | None:
        """What to change where torch.compile, which begins its work at the first batch, could not do it; else None."""
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # importing them takes seconds
            return None
        reason = " ".join(str(error).split())
        return f"torch.compile can't compile the net on this machine ({reason:.200}): say --no-compile."

    def _advice_on_memory(self, error: BaseException, loader: DataLoader) -> str | None:
        """What to lower, and to what, where memory ran out in this process or in one of the loader's; else None."""
        text, batch, fewer = str(error), loader.batch_size, self._fewer(loader)
        if "Too many open files" in text or "ancdata" in text:
            return f"Too many files are open: raise the limit (ulimit -n), or lower {fewer}."
        if "shared memory" in text:
            return f"The memory that processes share (/dev/shm) is full: make it larger, or lower {fewer}."
        if "DataLoader worker (pid" in text:  # it was killed, or "exited unexpectedly"
            return self._reader_ended(loader)
        if not errors.ran_out_of_memory(error):
            return None
        if "DataLoader worker process" in text or isinstance(error, OSError):
            return f"A process that reads photos ran out of memory: lower {fewer}."
        return self._smaller_run(batch)

    def _reader_ended(self, loader: DataLoader) -> str:
        return f"A process that reads photos was ended, mostly for want of memory: lower {self._fewer(loader)}."

    @staticmethod
    def _fewer(loader: DataLoader) -> str:
        return f"--workers to {loader.num_workers // 2} (now {loader.num_workers})"

    def _smaller_run(self, batch: int) -> str:
        """What takes half of the memory that a run with `batch` images a step took."""
        (height, width), sides = self.net.in_shape[1:], self.net.valid_sizes
        small = [sides[max(0, (7 * side // 10 - sides.start) // sides.step)] for side in (height, width)]
        margin = height - self.net.output_size[0]
        ways, accumulate = "free some", self.accumulate_steps
        if batch > 1:  # as many images a step as before, so the run can go on
            fewer = max(count for count in range(1, batch // 2 + 1) if batch * accumulate % count == 0)
            several = batch * accumulate // fewer
            ways += f", or go on with --batch-size {fewer} --accumulate-steps {several} (now {batch} and {accumulate})"
        if small != [height, width]:
            sizes = *small, *(side - margin for side in small)
            ways += ", or start another run with --input-img-resize {} {} --output-img-resize {} {}".format(*sizes)
        images = f"{helpers.pluralize(batch, 'image')} of {width}x{height}"
        return f"Memory ran out on {self.device}, with {images} a step: {ways}."

    def _minutes_left(self, train_loader: DataLoader) -> float:
        """Of the training, if it goes on as in the latest epoch. Images of half the size take a third of that."""
        half_size_epochs = getattr(train_loader.dataset, "half_size_epochs", 0)
        left = self.epochs - self.epoch
        small = min(left, max(half_size_epochs - self.epoch, 0))
        trained = len(train_loader.dataset) / self.metrics[-1]["train_images_per_second"]  # seconds
        full = trained * (3 if self.epoch <= half_size_epochs else 1)
        others = self.metrics[-1]["seconds"] - trained
        return (small * trained + (left - small) * full + left * others) / 60

    def _epoch(self, epoch: int) -> str:
        return f"epoch {epoch:{len(str(self.epochs))}}/{self.epochs}"

    def _heading(self) -> str:
        """Two lines, above those of _epoch_line."""
        margin = " " * len(self._epoch(self.epochs))
        return f"{margin}       loss            Dice\n{margin}   train   valid   train   valid  images/s  time left"

    def _epoch_line(self, metrics: dict[str, float], minutes_left: float) -> str:
        """80 columns at most."""
        values = [metrics[f"{phase}_{name}"] for name in ("loss", "dice") for phase in ("train", "valid")]
        hours, minutes = divmod(round(minutes_left), 60)
        left = f"{hours} h {minutes:02}" if hours else f"{minutes} min"
        numbers = "".join(f" {value:7.4f}" for value in values)
        return (
            f"{self._epoch(self.epoch)}{numbers}{metrics['train_images_per_second']:10.1f}"
            f"{left:>11}{'  <- best' if metrics is self.best else ''}"
        )


def photos_of_step(loader: DataLoader, step: int) -> str:
    """", at the photos a.jpg, b.jpg": those of a step, from 1, of a pass over a loader whose order is an epoch's."""
    if not hasattr(loader.dataset, "X") or isinstance(loader.sampler, RandomSampler):
        return ""
    batch = next(islice(loader.batch_sampler, step - 1, None))
    return f", at the photos {', '.join(Path(loader.dataset.X[index]).name for index in batch)}"


class Meter:
    """Sums of loss, Dice and pixel accuracy over a pass's images. They stay on the device until read() fetches them."""

    NAMES = ("loss", "dice", "pixel_accuracy")

    def __init__(self):
        self.images = 0
        self.sums = torch.zeros(len(self.NAMES), dtype=torch.float64)
        self.unread: list[Tensor] = []

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, targets: Tensor, threshold: float) -> Tensor:
        """-> the Dice of each image."""
        # A soft target's pixel counts as car where half of it is.
        predictions, truth = logits.float().sigmoid() > threshold, targets > 0.5
        dice, accuracy = dice_per_image(predictions, truth), pixel_accuracy_per_image(predictions, truth)
        self.images += len(logits)
        self.unread.append(torch.stack([loss.detach() * len(logits), dice.sum(), accuracy.sum()]))
        return dice

    def read(self) -> int | None:
        """Fetch the sums. Returns how many steps ago the first loss that is not finite came, None if all are finite."""
        steps = torch.stack(self.unread).cpu().double()  # (steps since the last read, 3)
        self.unread.clear()
        self.sums += steps.sum(0)
        bad = (~steps[:, 0].isfinite()).nonzero()
        return len(steps) - 1 - int(bad[0]) if len(bad) else None

    def all_reduce(self) -> None:
        """Add what the other processes have."""
        pluralize = torch.tensor([self.images, *self.sums], dtype=torch.float64)
        distributed.all_reduce(pluralize)
        self.images, self.sums = int(pluralize[0]), pluralize[1:]

    def means(self) -> dict[str, float]:
        return dict(zip(self.NAMES, (self.sums / self.images).tolist(), strict=True))
