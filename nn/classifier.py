"""CarvanaClassifier: the loop that trains a net, validates it after each epoch, and predicts with it."""

import math
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from helpers import Progress, format_size, seed_everything
from img.transformer import to_device
from img.tta import merge_tta
from nn.callback import Callback
from nn.losses import SoftDiceLoss, binary_cross_entropy
from nn.metrics import Meter
from nn.optimizer import ModelEma
from runtime import distributed
from runtime.errors import require
from runtime.files import checkpoint_errors, load_checkpoint
from runtime.machine import Machine, accelerate


class CarvanaClassifier:
    """Trains `net`, validates it and predicts with it. With torchrun, each process does its share.

    net: maps images (N, 3, H, W) in [0, 1] to logits (N, h, w); such as nn/unet.py's.
    epochs: of the whole training. machine: device, precision (the dtype of autocast), mode.
    threshold: a pixel is car where its probability is above this. seed: seeds torch, together with the epoch.
    accumulate_steps: batches per optimizer step (gradient accumulation).
    grad_clip: maximum norm of the gradient; 0: no limit. edge_weight: see binary_cross_entropy.
    ema_decay: validate, save and predict with an exponential moving average of the weights; 0: with the weights.
    """

    RESUME_KEYS = ("raw_net", "optimizer", "scaler", "valid_dice")  # needed only to resume, not to predict
    TIMING_METRICS = ("train_images_per_second", "valid_images_per_second", "seconds")  # not reproducible

    def __init__(self, net: nn.Module, epochs: int, machine: Machine = Machine(), threshold: float = 0.5,
                 seed: int = 0, accumulate_steps: int = 1, grad_clip: float = 0.0, ema_decay: float = 0.0,
                 edge_weight: float = 1.0):
        self.device, self.precision, self.threshold, self.seed = machine.device, machine.precision, threshold, seed
        self.accumulate_steps, self.grad_clip, self.edge_weight = accumulate_steps, grad_clip, edge_weight
        self.net = net.to(self.device, memory_format=torch.channels_last)  # its weights are saved
        ddp = distributed.wrap_ddp(self.net, self.device)  # with one process it is the net
        self.no_sync = getattr(ddp, "no_sync", nullcontext)
        self.model = accelerate(ddp, machine.mode)  # trains
        self.ema = ModelEma(self.net, ema_decay)
        self.eval_net = self.ema.net  # validates and predicts; without EMA it is the net
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        if self.scaler.is_enabled():  # it may skip the first optimizer steps, but not the scheduler's
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        self.soft_dice_loss = SoftDiceLoss()
        self.optimizer = self.scheduler = None  # until train()
        self.epochs, self.epoch = epochs, 0
        self.metrics: list[dict[str, float]] = []  # one entry per epoch
        self.valid_dice = torch.empty(0)  # of each validation image in the latest epoch

    def train(self, train_loader: DataLoader, valid_loader: DataLoader, optimizer: Optimizer,
              scheduler: LRScheduler | None = None, callbacks: Sequence[Callback] = ()) -> None:
        """Train until `self.epochs` epochs are done, and validate after each. The scheduler steps with the optimizer.

        loader.dataset.prepare(batch, device) -> images (N, 3, H, W), masks (N, h, w) in [0, 1]; 1 is a pixel of car.
        """
        self.optimizer, self.scheduler = optimizer, scheduler
        callbacks = callbacks if distributed.is_main_process() else ()
        for callback in callbacks:
            callback.on_train_begin(self, valid_loader)
        while self.epoch < self.epochs:
            self.epoch += 1
            start = time.perf_counter()
            metrics = {"epoch": self.epoch, "learning_rate": optimizer.param_groups[0]["lr"]}
            metrics |= self.train_epoch(train_loader)
            metrics |= self.validate(valid_loader)
            metrics["seconds"] = time.perf_counter() - start
            self.metrics.append(metrics)
            for callback in callbacks:
                callback.on_epoch_end(self, self.epoch, metrics)

    def train_epoch(self, loader: DataLoader) -> dict[str, float]:
        """One pass over the training images -> the means of its metrics."""
        seed_everything(self.seed, self.epoch)
        for each in (loader.sampler, loader.dataset):
            if hasattr(each, "set_epoch"):
                each.set_epoch(self.epoch)
        self.model.train()
        meter = Meter(f"train {self.epoch}/{self.epochs}", loader)
        with meter.bar:
            for batch, loaded in enumerate(distributed.lockstep(loader), start=1):
                images, targets = loader.dataset.prepare(loaded, self.device)  # (N, 3, H, W), (N, h, w) in [0, 1]
                ends_step = batch % self.accumulate_steps == 0 or batch == meter.batches
                with nullcontext() if ends_step else self.no_sync():  # the processes average gradients once per step
                    logits = self.forward(images, self.model)  # (N, h, w)
                    loss = self._criterion(logits, targets) if len(images) else logits.sum()
                    self.scaler.scale(loss * self.fraction_of_step(images, batch, loader)).backward()
                if ends_step:
                    self.optimizer_step()
                meter.update(loss, logits, targets, self.threshold)
        for net in dict.fromkeys((self.net, self.eval_net)):  # in the same order in all processes
            distributed.average_buffers(net)
        return meter.result("train_")

    def fraction_of_step(self, images: Tensor, batch: int, loader: DataLoader) -> float:
        """The weight of a batch's mean loss in an optimizer step: all images of the step count the same.

        The last step of an epoch may have fewer images. DDP averages over the processes, hence WORLD_SIZE.
        """
        per_step = loader.batch_size * self.accumulate_steps * distributed.WORLD_SIZE
        earlier = (batch - 1) // self.accumulate_steps * per_step
        return len(images) * distributed.WORLD_SIZE / min(per_step, len(loader.dataset) - earlier)

    def steps_per_epoch(self, loader: DataLoader) -> int:
        """Optimizer steps per epoch, the same in all processes (len(loader) is not)."""
        return math.ceil(distributed.count_batches(loader) / self.accumulate_steps)

    def optimizer_step(self) -> None:
        if self.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.net.parameters(), self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()
        self.ema.update()

    @torch.no_grad()
    def validate(self, loader: DataLoader) -> dict[str, float]:
        """One pass over the validation images -> the means of its metrics. Sets valid_dice."""
        self.eval_net.eval()
        dice = [torch.empty(0, device=self.device)]
        meter = Meter(f"valid {self.epoch}/{self.epochs}", loader)
        with meter.bar:
            for batch in loader:
                images, targets = loader.dataset.prepare(batch, self.device)  # (N, 3, H, W), (N, h, w) in [0, 1]
                logits = self.forward(images, self.eval_net)  # (N, h, w)
                dice.append(meter.update(self._criterion(logits, targets), logits, targets, self.threshold))
        self.valid_dice = torch.zeros(len(loader.dataset))
        self.valid_dice[list(loader.sampler)] = torch.cat(dice).cpu()
        distributed.all_reduce(self.valid_dice)  # each process has set its own images
        return meter.result("valid_")

    def forward(self, images: Tensor, net: nn.Module) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> logits (N, h, w) in the precision of autocast."""
        images = images.contiguous(memory_format=torch.channels_last)
        enabled = self.precision != torch.float32 and len(images) > 0  # SyncBatchNorm wants an empty batch in float32
        with torch.autocast(self.device.type, dtype=self.precision, enabled=enabled, cache_enabled=False):
            return net(images)

    def _criterion(self, logits: Tensor, targets: Tensor) -> Tensor:
        return binary_cross_entropy(logits, targets, self.edge_weight) + self.soft_dice_loss(logits, targets)

    def predict(self, loader: DataLoader, callbacks: Sequence[Callback] = (), title: str = "predict") -> None:
        """Predict all images of a loader that yields images, as predict_probs takes them, and the files' names.

        While the callbacks work on a batch in a thread, the net predicts the next one. title: of the progress bar.
        """
        def write_batch(names: Sequence[str], probs: Tensor) -> None:
            results = [callback.on_predict_batch(names, probs) for callback in callbacks]
            gathered = distributed.all_gather((len(names), results))
            for images, of_process in gathered if distributed.is_main_process() else ():
                for callback, result in zip(callbacks, of_process, strict=True):
                    callback.on_batch_gathered(result)
                bar.update(images)

        if not len(loader.dataset):
            return
        bar = Progress(total=len(loader.dataset), desc=title, unit="img", leave=True)
        try:
            with bar, ThreadPoolExecutor(max_workers=1) as writer:
                written = writer.submit(bar.update, 0)
                for images, names in distributed.lockstep(loader):
                    probs = self.predict_probs(images) if len(names) else torch.empty(0, 1, 1)
                    written.result()  # or the error that ended it
                    written = writer.submit(write_batch, names, probs)
                written.result()
        except BaseException:
            for callback in callbacks:
                callback.on_exception()
            raise

    @torch.inference_mode()
    def predict_probs(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, H, W) -> the probability of car at each pixel of their masks, (N, h, w) float32.

        With test-time augmentation, both views of each image (N, 2, 3, H, W) -> (N, 2h, 2w); see img/tta.py.
        """
        self.eval_net.eval()
        images = to_device(images, self.device) / 255
        views = images[:, None] if images.ndim == 4 else images  # (N, V, 3, H, W)
        probs = [self.forward(view, self.eval_net).float().sigmoid() for view in views.unbind(1)]
        return probs[0] if images.ndim == 4 else merge_tta(torch.stack(probs, dim=1))

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the first epoch with the highest validation Dice."""
        return max(self.metrics, key=lambda metrics: metrics["valid_dice"])

    def state_dict(self) -> dict:
        """Everything that a training needs to resume, in types that torch.load(weights_only=True) reads."""
        has_ema = self.eval_net is not self.net
        return {
            "net_name": type(self.net).__name__,
            "in_shape": list(self.net.in_shape),
            "net": self.eval_net.state_dict(),
            "raw_net": self.net.state_dict() if has_ema else None,
            "ema_updates": self.ema.updates if has_ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "metrics": self.metrics,
            "valid_dice": self.valid_dice,
        }

    def restore_model(self, path: str | Path, optimizer: Optimizer | None = None) -> dict:
        """Load the weights of a checkpoint, to predict; with an optimizer, its whole state, to resume training.

        Only the main process reads the file. Returns its contents. Raises UserError if they are not of this net.
        """
        checkpoint = distributed.broadcast(lambda: load_checkpoint(path))
        with checkpoint_errors(path, checkpoint):
            saved = f"{checkpoint['net_name']} at {format_size(checkpoint['in_shape'][1:])}"
            needed = f"{type(self.net).__name__} at {format_size(self.net.in_shape[1:])}"
            require(saved == needed, f"{path} is a checkpoint of {saved}, but the net is {needed}. Choose the net and "
                    "the size that it was trained with.")
            self.eval_net.load_state_dict(checkpoint["net"])
            if optimizer is not None:
                require((checkpoint["raw_net"] is None) == (self.eval_net is self.net),
                        "The checkpoint and the classifier must both have an EMA of the weights, or neither of them.")
                self.net.load_state_dict(checkpoint["raw_net"] or checkpoint["net"])
                self.ema.updates = checkpoint["ema_updates"]
                optimizer.load_state_dict(checkpoint["optimizer"])
                if checkpoint["scaler"]:  # empty unless it was float16
                    self.scaler.load_state_dict(checkpoint["scaler"])
                self.epoch, self.metrics, self.valid_dice = (
                    checkpoint[key] for key in ("epoch", "metrics", "valid_dice"))
        return checkpoint
