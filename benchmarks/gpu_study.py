"""Where the time of a training step goes on a GPU, and what would make it shorter: under six minutes.

    python benchmarks/gpu_study.py                        # every section, 352 s at most
    python benchmarks/gpu_study.py --only base micro      # these sections
    python benchmarks/gpu_study.py --device cpu --tiny    # checks that it runs; the numbers mean nothing

Each section runs in a separate process, so a failed CUDA graph capture or a stuck compilation ends that section only.
Each measurement is an object in gpu_study.jsonl; gpu_study.log also has the longest kernels. A table of everything is
printed at the end. Needs torch >= 2.11; triton for the compile sections and torchvision for the JPEGs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity

sys.path.insert(0, str(Path(__file__).parent.parent))
from img.augmentation import NUMBERS, Augmentation
from nn import unet, unet_origin
from nn.losses import SoftDiceLoss, binary_cross_entropy
from nn.metrics import dice_per_image, pixel_accuracy_per_image
from nn.optimizer import ModelEma, make_optimizer
from runtime.machine import accelerate

SECTIONS = {  # name: (longest time in seconds, seconds that must be left to start it); the most useful ones first
    "ceilings": (25, 5),
    "base": (85, 10),
    "micro": (40, 8),
    "graphs": (75, 10),
    "io": (30, 8),
    "compile_1024_gather": (120, 40),
    "compile_1024": (110, 40),
    "compile_original": (90, 40),
}
KERNELS = {  # kind of a kernel: parts of its name. The first kind that matches counts
    "batch norm": ("batch_norm", "bn_fw", "bn_bw", "batchnorm"),
    "upsample": ("upsample",),
    "pool": ("max_pool",),
    "cat": ("CatArray",),
    "optimizer": ("multi_tensor", "FusedAdam", "fused_adam", "FusedSgd"),
    "layout": ("nchwToNhwc", "nhwcToNchw", "nhwcAddPadding", "ToFolded", "tensorTransform"),
    "convolution": ("cudnn", "cutlass", "xmma", "implicit", "conv", "dgrad", "wgrad", "gemm", "gemv", "nvjet"),
    "triton reduction": ("triton_red", "triton_per"),
    "triton pointwise": ("triton_",),
    "reduce": ("reduce",),
    "copy, cast": ("copy", "Memcpy", "Memset"),
    "elementwise": ("elementwise",),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small images and one repetition")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, help="run these sections only")
    parser.add_argument("--budget", type=float, default=352.0, help="seconds for all sections together")
    parser.add_argument("--rows", type=Path, default=Path(tempfile.gettempdir(), "gpu_study.jsonl"),
                        help="file for the measurements; the log is written next to it")
    parser.add_argument("--verbose", action="store_true", help="print each line as it comes, not only to the log")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)  # of this process
    return parser.parse_args()


ARGS = parse_arguments()
TINY, CUDA = ARGS.tiny, ARGS.device.startswith("cuda")
DEVICE = torch.device(ARGS.device)
SIDE = 64 if TINY else 1024  # of single layers and of the images on their way to the device
Case = tuple[str, int, int]  # net, side of its images, batch size
CASES: list[Case] = [("UNet1024", 1024, 2), ("UNetOriginal", 572, 3), ("UNet1024", 256, 8)]
if TINY:
    CASES = [("UNet1024", 128, 2), ("UNetOriginal", 188, 1)]


# The parent process ---------------------------------------------------------------------------------------------------


def run_sections() -> bool:
    """Run each section in a process, and print a table of all rows. Returns whether every section succeeded."""
    start, log, succeeded = time.monotonic(), ARGS.rows.with_suffix(".log"), True
    for path in (ARGS.rows, log):
        path.unlink(missing_ok=True)
    for name in ARGS.only or SECTIONS:
        longest, needed = SECTIONS[name]
        left = ARGS.budget - (time.monotonic() - start)
        if left < needed:
            print(f"-- {name}: skipped, {left:.0f} s left", flush=True)
            continue
        began = time.monotonic()
        code = run_section(name, log, timeout=left if TINY else min(longest, left))
        succeeded = succeeded and code == 0
        print(f"-- {name}: {time.monotonic() - began:.0f} s, exit {code}", flush=True)
    print(f"\n== all rows ({time.monotonic() - start:.0f} s)")
    for line in ARGS.rows.read_text().splitlines() if ARGS.rows.exists() else []:
        values = json.loads(line)
        section, name = values.pop("section"), values.pop("name")
        print(f"{section[:12]}| {name}:", *(f"{key}={value}" for key, value in values.items()))
    print(f"all of it: {log} and {ARGS.rows}")
    return succeeded


def run_section(name: str, log: Path, timeout: float) -> int | str:
    """Run one section in a process -> its exit code, or "timeout"."""
    options = ["--section", name, "--device", ARGS.device, "--rows", str(ARGS.rows), *["--tiny"] * TINY]
    with log.open("a") as file:
        output = None if ARGS.verbose else file
        command = [sys.executable, __file__, *options]
        try:
            return subprocess.run(command, stdout=output, stderr=output, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            return "timeout"


# Measuring ------------------------------------------------------------------------------------------------------------


def row(name: str, **values: object) -> None:
    """Print a measurement, and append it to the rows."""
    values = {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in values.items()}
    print(f"  {name:58}", " ".join(f"{key}={value}" for key, value in values.items()), flush=True)
    with ARGS.rows.open("a") as file:
        file.write(json.dumps({"section": ARGS.section, "name": name, **values}) + "\n")


@contextmanager
def variant(name: str) -> Iterator[None]:
    """Measure one variant: an error becomes a row, and the next variant runs."""
    if CUDA:
        try:
            torch.cuda.empty_cache()
        except Exception as error:
            print("an earlier error broke the CUDA context:", error, flush=True)
            os._exit(3)
    try:
        yield
    except Exception as error:
        row(name, error=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def sync() -> None:
    if CUDA:
        torch.cuda.synchronize()


def timed(work: Callable, seconds: float = 0.5, warmup: int = 3, longest: int = 200) -> float:
    """Milliseconds per call: the median of three rounds of about `seconds` together, timed by CUDA events on a GPU."""
    for _ in range(1 if TINY else warmup):
        work()
    sync()
    start = time.perf_counter()
    work()
    sync()
    once = max(time.perf_counter() - start, 1e-6)
    calls = 1 if TINY else max(2, min(longest, round(seconds / 3 / once)))
    return statistics.median(timed_round(work, calls) for _ in range(1 if TINY else 3))


def timed_round(work: Callable, calls: int) -> float:
    """Milliseconds per call of so many calls in a row."""
    if not CUDA:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return 1e3 * (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    sync()
    return begin.elapsed_time(end) / calls


def timed_on_cpu(work: Callable, seconds: float = 0.3) -> float:
    """Milliseconds per call on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work()
    start = time.perf_counter()
    work()
    calls = 1 if TINY else max(3, round(seconds / max(time.perf_counter() - start, 1e-6)))
    start = time.perf_counter()
    for _ in range(calls):
        work()
    torch.set_num_threads(threads)
    return 1e3 * (time.perf_counter() - start) / calls


def launch_time(work: Callable, calls: int = 5) -> float:
    """Milliseconds that the CPU takes to launch the kernels of one call on an idle GPU."""
    times = []
    for _ in range(1 if TINY else calls):
        sync()
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    sync()
    return statistics.median(times)


def measure(name: str, work: Callable, batch: int, seconds: float = 0.6, launch: bool = False, **more: object) -> None:
    """A row of time per call, images per second, launch time and peak memory."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    ms = timed(work, seconds)
    values = {"ms": ms, "img_s": 1e3 * batch / ms}
    if launch:
        values["launch_ms"] = launch_time(work)
    if CUDA:
        values["GiB"] = torch.cuda.max_memory_allocated() / 2**30
    row(name, **values, **more)


def profile(name: str, work: Callable, longest: int = 7) -> None:
    """GPU milliseconds per call by kind of kernel, and the longest kernels."""
    work()
    sync()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(2):
            work()
        sync()
    times, counts, kernels = {}, {}, []
    for event in profiler.key_averages():
        ms, count = event.self_device_time_total / 2e3, event.count / 2
        if ms <= 0:
            continue
        kind = next((kind for kind, parts in KERNELS.items() if any(part in event.key for part in parts)), "other")
        times[kind], counts[kind] = times.get(kind, 0) + ms, counts.get(kind, 0) + count
        kernels.append((ms, count, event.key))
    by_time = sorted(times, key=times.get, reverse=True)
    kinds = {kind.replace(" ", "_"): f"{times[kind]:.2f}ms/{counts[kind]:.0f}" for kind in by_time}
    row(f"{name}: GPU by kind", busy_ms=sum(times.values()), kernels=sum(counts.values()), **kinds)
    for ms, count, key in sorted(kernels, reverse=True)[:longest]:
        print(f"      {ms:7.3f} ms {count:5.0f} x  {key[:150]}")


# Nets and steps -------------------------------------------------------------------------------------------------------


class GatherUpsample(torch.autograd.Function):
    """Bilinear upsampling by 2. The gradient is gathered; torch's own scatters it with atomic additions."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        for dim in (-2, -1):
            n = grad.shape[dim] // 2
            even, odd = (grad[:, :, first::2] if dim == -2 else grad[..., first::2] for first in (0, 1))
            next_even = torch.cat([even.narrow(dim, 1, n - 1), odd.narrow(dim, n - 1, 1)], dim)
            previous_odd = torch.cat([even.narrow(dim, 0, 1), odd.narrow(dim, 0, n - 1)], dim)
            grad = 0.75 * (even + odd) + 0.25 * (next_even + previous_odd)
        return grad


def gather_forward(self: unet.UpsampleDecoder, x: Tensor, trace: Tensor) -> Tensor:
    return self.convs(torch.cat([trace, GatherUpsample.apply(x)], dim=1))


class MaxOfFour(nn.Module):
    """MaxPool2d(2) whose gradient is a comparison, with nothing to scatter when it is compiled."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])


def make(
    name: str,
    side: int,
    gather: bool = False,
    max_of_four: bool = False,
    layout: torch.memory_format = torch.channels_last,
) -> nn.Module:
    """A net on the device, with other upsampling or pooling layers if asked for."""
    net = unet.NETS[name]((3, side, side))
    for module in net.modules():
        if isinstance(module, unet.UpsampleDecoder) and gather:
            module.forward = gather_forward.__get__(module)
        if isinstance(module, unet_origin.StackEncoder) and max_of_four:
            module.pool = MaxOfFour()
    return net.to(DEVICE, memory_format=layout)


class Step:
    """One training step as nn/classifier.py takes it in eager mode, from uint8 images to metrics, without augmentation.

    optimizer: "RMSprop", "SGD", "AdamW" or "" for none. upload: copy the batch to the device in each step.
    capturable: the optimizer can be part of a CUDA graph.
    """

    def __init__(
        self, net: nn.Module, batch: int, optimizer: str, dtype: torch.dtype = torch.bfloat16, metrics: bool = True,
        layout: torch.memory_format = torch.channels_last, capturable: bool = False, upload: bool = False,
    ):  # fmt: skip
        self.net, self.batch, self.dtype, self.metrics, self.layout = net.train(), batch, dtype, metrics, layout
        self.images = torch.randint(256, (batch, *net.in_shape), dtype=torch.uint8)
        self.masks = torch.randint(2, (batch, *net.output_size), dtype=torch.uint8) * 255
        if upload and CUDA:
            self.images, self.masks = self.images.pin_memory(), self.masks.pin_memory()
        if not upload:
            self.images, self.masks = self.images.to(DEVICE), self.masks.to(DEVICE)
        make_one = {
            "RMSprop": lambda: torch.optim.RMSprop(net.parameters(), lr=1e-5, capturable=capturable),
            "SGD": lambda: torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.99, fused=True),
            "AdamW": lambda: torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True, capturable=capturable),
        }
        self.optimizer = make_one[optimizer]() if optimizer else None
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16)
        self.dice_loss = SoftDiceLoss()

    def __call__(self) -> Tensor:
        targets = self.masks.to(DEVICE, non_blocking=True).float() / 255
        images = self.images.to(DEVICE, non_blocking=True, memory_format=self.layout).float() / 255
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, dtype=self.dtype, cache_enabled=False):
            logits = self.net(images)
        loss = binary_cross_entropy(logits, targets) + self.dice_loss(logits, targets)
        self.scaler.scale(loss).backward()
        if self.optimizer is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.metrics:
            with torch.no_grad():
                predictions, truth = logits.float().sigmoid() > 0.5, targets > 0.5
                dice, accuracy = dice_per_image(predictions, truth), pixel_accuracy_per_image(predictions, truth)
                self.last = torch.stack([loss.detach() * self.batch, dice.sum(), accuracy.sum()])
        return loss


def capture(step: Step) -> Callable[[], None]:
    """The replay of one CUDA graph of the whole step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    step.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure_step(
    title: str, case: Case, optimizer: str, *, gather: bool = False, seconds: float = 0.6, launch: bool = False,
    kernels: int = 0, graph: bool = False, **options: object,
) -> None:  # fmt: skip
    """A row of a training step, in one CUDA graph if asked for, and its `kernels` longest kernels."""
    name, side, batch = case
    with variant(title):
        layout = options.get("layout", torch.channels_last)
        step, more = Step(make(name, side, gather, layout=layout), batch, optimizer, capturable=graph, **options), {}
        work = step
        if graph:
            start = time.perf_counter()
            work = capture(step)
            sync()
            more["capture_s"] = time.perf_counter() - start
        measure(title, work, batch, seconds, launch, **more)
        if CUDA and kernels:
            profile(title, work, kernels)


def measure_prediction(title: str, net: nn.Module, batch: int, launch: bool = False) -> None:
    with variant(title), torch.inference_mode():
        net.eval()
        images = torch.randint(256, (batch, *net.in_shape), dtype=torch.uint8, device=DEVICE)

        def predict() -> Tensor:
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                return net(images.to(memory_format=torch.channels_last).float() / 255).float().sigmoid()

        measure(title, predict, batch, 0.3, launch)


# Section ceilings -----------------------------------------------------------------------------------------------------


def ceilings() -> None:
    """What the hardware can do: memory, matrix products, launches."""
    where = torch.cuda.get_device_name() if CUDA else "CPU"
    print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {os.cpu_count()} cores, {where}, "
          f"benchmark {torch.backends.cudnn.benchmark}, TF32 {torch.backends.cudnn.allow_tf32}")  # fmt: skip
    with variant("copy"):
        a = torch.empty((64 if TINY else 2048) * 2**20, dtype=torch.uint8, device=DEVICE)
        b = torch.empty_like(a)
        row("copy, read + written", TB_s=2 * a.numel() / timed(lambda: b.copy_(a)) / 1e9)
        del a, b
    with variant("product"):
        for n in (256,) if TINY else (4096, 8192):
            a, b = (torch.randn(n, n, device=DEVICE).bfloat16() for _ in range(2))
            row(f"product {n}^3 bf16", TFLOP_s=2 * n**3 / timed(lambda a=a, b=b: a @ b) / 1e9)
    with variant("launches"):
        launches()
    with variant("gathered gradient"):
        gradient_error()
    with variant("graph breaks"), torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        explained = torch._dynamo.explain(make("UNet1024", 128))(torch.rand(2, 3, 128, 128, device=DEVICE))
        row("UNet1024 in torch.compile", graphs=explained.graph_count, breaks=explained.graph_break_count)


def launches() -> None:
    """The time of kernels that have next to nothing to do."""
    x = torch.zeros(1, device=DEVICE)

    def add_500_times() -> None:
        for _ in range(500):
            x.add_(1)

    row("empty kernel", us_launch=1e3 * launch_time(add_500_times) / 500, us=1e3 * timed(add_500_times, 0.2) / 500)
    block = unet_origin.ConvBnRelu(24, 24, padding=1).to(DEVICE, memory_format=torch.channels_last)
    y = torch.randn(1, 24, 16, 16, device=DEVICE).to(memory_format=torch.channels_last)

    def forward_20_times() -> None:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            for _ in range(20):
                block(y)

    row("a ConvBnRelu, forward, 16x16", us_launch=1e3 * launch_time(forward_20_times) / 20)


def gradient_error() -> None:
    """The relative error of GatherUpsample's gradient."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(2, 24, 16, 24, device=DEVICE).to(memory_format=torch.channels_last).requires_grad_()
        g = torch.randn(2, 24, 32, 48, device=DEVICE).to(memory_format=torch.channels_last)
        (expected,) = torch.autograd.grad(F.interpolate(x, scale_factor=2, mode="bilinear"), x, g)
        (gathered,) = torch.autograd.grad(GatherUpsample.apply(x.to(dtype)), x, g.to(dtype))
        error = (gathered - expected).norm() / expected.norm()
        row(f"gathered gradient against torch's, {str(dtype)[6:]}", relative_error=error.item())


# Section base ---------------------------------------------------------------------------------------------------------


def base() -> None:
    """The training step of main.py with the tutorial's optimizers, its kernels, and each change alone."""
    for case in CASES:
        name, side, batch = case
        title, optimizer = f"{name} {side} b{batch}", "SGD" if name == "UNetOriginal" else "RMSprop"
        measure_step(f"{title} eager bf16", case, optimizer, upload=True, launch=True, kernels=7)
        if CUDA:  # on a CPU, float16 takes minutes
            longest = 0 if side == 256 else 4
            measure_step(f"{title} float16 (cuDNN's BatchNorm)", case, optimizer, dtype=torch.float16, kernels=longest)
        torch.backends.cudnn.benchmark = True
        longest = 4 if side == 1024 else 0
        measure_step(f"{title} cudnn.benchmark", case, optimizer, launch=True, kernels=longest)
        if name == "UNet1024":
            measure_step(f"{title} benchmark, gathered upsampling", case, optimizer, gather=True)
        measure_step(f"{title} benchmark, no metrics", case, optimizer, metrics=False)
        measure_step(f"{title} benchmark, no metrics, no optimizer", case, "", metrics=False)
        torch.backends.cudnn.benchmark = False
    name, side, batch = CASES[0]
    measure_step(f"{name} {side} b{batch} contiguous NCHW", CASES[0], "RMSprop", layout=torch.contiguous_format)


# Section micro --------------------------------------------------------------------------------------------------------


def micro() -> None:
    """Single layers: what fraction of the two ceilings each kernel reaches."""
    torch.backends.cudnn.benchmark = True
    convolutions()
    batch_norms()
    upsampling()
    pooling()
    original_layers()
    optimizers()


def channels_last(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=dtype).contiguous(memory_format=torch.channels_last)


def backward_ms(y: Tensor, inputs: Tensor | list[Tensor], grad: Tensor) -> float:
    return timed(lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True), 0.1)


def convolutions() -> None:
    n = SIDE
    shapes = ((3, 24, n), (24, 24, n), (48, 24, n), (32, 32, n), (64, 64, n), (128, 24, n // 2), (64, 64, n // 2),
              (256, 256, n // 8), (1024, 256, n // 16), (512, 512, n // 32))  # fmt: skip
    for inputs, outputs, side in shapes:
        with variant(f"conv {inputs}->{outputs}"):
            x, weight = channels_last(2, inputs, side, side), channels_last(outputs, inputs, 3, 3)
            grad = channels_last(2, outputs, side, side)
            times = {"fwd": timed(lambda x=x, weight=weight: F.conv2d(x, weight, padding=1), 0.1)}
            for what, mask in (("dgrad", (True, False, False)), ("wgrad", (False, True, False))):
                if what == "wgrad" or inputs != 3:  # images need no gradient
                    arguments = grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
                    times[what] = timed(lambda args=arguments: torch.ops.aten.convolution_backward(*args), 0.1)
            flop = 2 * 9 * inputs * outputs * 2 * side**2
            rates = {f"{what}_us": 1e3 * ms for what, ms in times.items()}
            rates |= {f"{what}_TF": flop / ms / 1e9 for what, ms in times.items()}
            sent = (x.numel() + grad.numel()) * 2
            row(f"conv3x3 {inputs}->{outputs} at {side} b2", **rates, fwd_GB_s=sent / times["fwd"] / 1e6)


def batch_norms() -> None:
    for channels, side in ((24, SIDE), (32, SIDE), (64, SIDE // 2), (128, SIDE // 4), (512, SIDE // 16)):
        for dtype in (torch.bfloat16, torch.float16):
            title = f"BatchNorm {channels} at {side} b2 {str(dtype)[6:]}"
            with variant(title):
                bn = nn.BatchNorm2d(channels).to(DEVICE)
                x, grad = (channels_last(2, channels, side, side, dtype=dtype) for _ in range(2))
                size = x.numel() * x.element_size()
                y = bn(x.requires_grad_())
                forward, backward = timed(lambda bn=bn, x=x: bn(x), 0.1), backward_ms(y, x, grad)
                row(title, fwd_us=1e3 * forward, bwd_us=1e3 * backward,
                    fwd_GB_s=3 * size / forward / 1e6, bwd_GB_s=5 * size / backward / 1e6)  # fmt: skip


def upsampling() -> None:
    kinds = {"torch": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "gather": GatherUpsample.apply}
    for channels, side in ((24, SIDE), (64, SIDE // 2), (128, SIDE // 4)):
        with variant(f"upsampling {channels}"):
            x = channels_last(2, channels, side // 2, side // 2).requires_grad_()
            grad, times = channels_last(2, channels, side, side), {}
            for kind, upsample in kinds.items():
                times[f"fwd_{kind}_us"] = 1e3 * timed(lambda x=x, upsample=upsample: upsample(x), 0.1)
                times[f"bwd_{kind}_us"] = 1e3 * backward_ms(upsample(x), x, grad)
            row(f"upsampling {channels} to {side} b2", **times)


def pooling() -> None:
    with variant("pooling"):
        x, grad = channels_last(2, 24, SIDE, SIDE).requires_grad_(), channels_last(2, 24, SIDE // 2, SIDE // 2)
        for kind, pool in (("MaxPool2d", nn.MaxPool2d(2)), ("max of four", MaxOfFour())):
            forward = timed(lambda pool=pool: pool(x), 0.1)
            row(f"{kind} 24 at {SIDE} b2", fwd_us=1e3 * forward, bwd_us=1e3 * backward_ms(pool(x), x, grad))


def original_layers() -> None:
    """The two layers that only UNetOriginal has."""
    with variant("crop"):
        large, small = (60, 40) if TINY else (568, 392)
        x = channels_last(3, 64, large, large).requires_grad_()
        y = unet_origin.center_crop(x, (small, small))
        forward = timed(lambda: unet_origin.center_crop(x, (small, small)), 0.1)
        backward = backward_ms(y, x, channels_last(*y.shape))
        row(f"center_crop {large} -> {small}, 64 channels b3", fwd_us=1e3 * forward, bwd_us=1e3 * backward)
    with variant("up-convolution"):
        side = 20 if TINY else 196
        up = nn.ConvTranspose2d(128, 64, 2, 2).to(DEVICE, memory_format=torch.channels_last).bfloat16()
        x = channels_last(3, 128, side, side).requires_grad_()
        y = up(x)
        forward, backward = timed(lambda: up(x), 0.1), backward_ms(y, [x, up.weight], torch.randn_like(y))
        row(f"ConvTranspose2d 128->64 at {side} b3", fwd_us=1e3 * forward, bwd_us=1e3 * backward)


def optimizers() -> None:
    net = make("UNet1024", 128)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    kinds = {
        "RMSprop foreach": lambda: torch.optim.RMSprop(net.parameters(), 1e-6),
        "RMSprop capturable": lambda: torch.optim.RMSprop(net.parameters(), 1e-6, capturable=CUDA),
        "SGD momentum foreach": lambda: torch.optim.SGD(net.parameters(), 1e-6, 0.99),
        "SGD momentum fused": lambda: torch.optim.SGD(net.parameters(), 1e-6, 0.99, fused=True),
        "AdamW fused, of make_optimizer": lambda: make_optimizer(net, "AdamW", 1e-6, weight_decay=0.01),
    }
    for kind, make_one in kinds.items():
        with variant(kind):
            step = make_one().step
            row(f"{kind}, 35 M weights", ms=timed(step, 0.15), launch_ms=launch_time(step))
    with variant("clip_grad_norm_"):
        row("clip_grad_norm_", ms=timed(lambda: nn.utils.clip_grad_norm_(net.parameters(), 1.0), 0.1))
    with variant("ModelEma.update"):
        ema = ModelEma(net, 0.99)
        row("ModelEma.update", ms=timed(ema.update, 0.15), launch_ms=launch_time(ema.update))


# Section graphs -------------------------------------------------------------------------------------------------------


def graphs() -> None:
    """CUDA graphs and larger batches, with AdamW. Most without cudnn.benchmark, which takes seconds for each shape."""
    cases = {("UNet1024", 1024): (2, 8, 16), ("UNet1024", 512): (2, 8, 32), ("UNetOriginal", 572): (3, 16),
             ("UNet1024", 256): (2, 8)}  # fmt: skip
    if TINY:
        cases = {("UNet1024", 128): (2,)}
    for (name, side), batches in cases.items():
        gather = name == "UNet1024"
        for batch in batches:
            case, title = (name, side, batch), f"{name} {side} b{batch}"
            launch = batch == batches[0]
            measure_step(f"{title} eager, AdamW", case, "AdamW", gather=gather, seconds=0.4, launch=launch)
            if CUDA:
                measure_step(f"{title} whole step in a graph", case, "AdamW", gather=gather, seconds=0.4, graph=True)
        if CUDA:
            first_batch_graphs((name, side, batches[0]), gather)
    for side, batches in {} if TINY else {1024: (2, 8, 16), 512: (8, 32)}.items():
        for batch in batches:
            measure_prediction(f"predict UNet1024 {side} b{batch} eager", make("UNet1024", side), batch, launch=True)


def first_batch_graphs(case: Case, gather: bool) -> None:
    """A graph of cuDNN's fastest algorithms, and graphs of the net alone, as main.py has them."""
    name, side, batch = case
    title = f"{name} {side} b{batch}"
    if side in (1024, 572):
        torch.backends.cudnn.benchmark = True
        with_benchmark = f"{title} whole step in a graph, cudnn.benchmark"
        measure_step(with_benchmark, case, "AdamW", gather=gather, seconds=0.4, graph=True)
        torch.backends.cudnn.benchmark = False
    with variant(f"{title} net in two graphs"):
        step = Step(make(name, side, gather), batch, "AdamW")
        step.net = accelerate(step.net, "CUDA graph")
        start = time.perf_counter()
        step()
        sync()
        seconds = time.perf_counter() - start
        if step.net.net in step.net.faster.values():
            raise RuntimeError("the net runs in eager mode, for a reason in the log")
        measure(f"{title} net in two graphs, the rest eager", step, batch, 0.4, launch=True, first_step_s=seconds)


# Section io -----------------------------------------------------------------------------------------------------------


def io() -> None:
    """Images to the device, their augmentation there, and masks back."""
    for batch in (2, 16):
        with variant(f"augment b{batch}"):
            augmentation(batch)
    if CUDA:
        with variant("transfers"):
            transfers()
    with variant("cache"):
        shared_cache()
    with variant("JPEG"):
        jpegs()
    with variant("random numbers"):
        us = 1e3 * timed_on_cpu(lambda: np.random.default_rng([0, 1, 2]).random(NUMBERS, np.float32))
        row("random numbers of (seed, epoch, index)", us=us)


def augmentation(batch: int) -> None:
    """img/augmentation.py on the device, for a batch of images with their masks, (N, 4, H, W)."""
    pairs = torch.randint(256, (batch, 4, SIDE, SIDE), dtype=torch.uint8, device=DEVICE)
    aspect, numbers = torch.full((batch,), 1.5), torch.rand(batch, NUMBERS)
    numbers[:, [0, 12]] = (torch.arange(batch) % 2.0)[:, None]  # half of them are flipped, half blurred
    kinds = {
        "flip": Augmentation(shift=0, scale=0, rotation=0),
        "tutorial": Augmentation(),
        "recipe": Augmentation(shift=0, scale=0, rotation=0, color_jitter=0.2, grayscale=0.15),
        "blur": Augmentation(shift=0, scale=0, rotation=0, blur=2.0),
    }
    values = {}
    for kind, augment in kinds.items():
        work = partial(augment, pairs, aspect, numbers)
        values |= {f"{kind}_ms": timed(work, 0.1), f"{kind}_launch_ms": launch_time(work)}
    row(f"augmentation on the device, {SIDE} b{batch}", **values)


def transfers() -> None:
    """Between host and device: a batch of two images with masks, and two masks of probabilities."""
    probs, large = (torch.rand(2, side, side, device=DEVICE) for side in (SIDE, 2 * SIDE))
    for kind, pinned in (("pinned", True), ("pageable", False)):
        batch = torch.empty(2, 4, SIDE, SIDE, dtype=torch.uint8, pin_memory=pinned)
        target = torch.empty(2, SIDE, SIDE, pin_memory=pinned)
        up = timed(lambda batch=batch: batch.to(DEVICE, non_blocking=True), 0.1)
        down = timed(lambda target=target: target.copy_(probs, non_blocking=True), 0.1)
        row(f"8 MB of batch up, 8 MB of probabilities down, {kind}", up_ms=up, down_ms=down)
    row("probs.cpu(), 8 MB", ms=timed(lambda: probs.cpu(), 0.1))
    row("probs.cpu(), 32 MB", ms=timed(lambda: large.cpu(), 0.1))


def shared_cache() -> None:
    """Two images copied from a memory-mapped file into a batch."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        count = 4 if TINY else 64
        size = count * 4 * SIDE * SIDE
        cache = torch.from_file(f"{folder}/cache", shared=True, size=size, dtype=torch.uint8)
        cache = cache.view(count, 4, SIDE, SIDE).fill_(7)
        batch = torch.empty(2, 4, SIDE, SIDE, dtype=torch.uint8, pin_memory=CUDA)
        ms = timed_on_cpu(lambda: torch.stack([cache[3], cache[1]], out=batch))
        row("two images from a shared cache into a batch, one thread", ms=ms, images_s=2e3 / ms)


def jpegs() -> None:
    """Decoding on one core, in threads, and on the GPU."""
    from torchvision.io import decode_jpeg, encode_jpeg

    size = (128, 192) if TINY else (1280, 1918)
    image = F.interpolate(torch.rand(1, 3, 80, 120), size=size, mode="bicubic")[0]
    image = ((image + 0.03 * torch.randn_like(image)) * 255).clamp(0, 255).to(torch.uint8)
    encoded = encode_jpeg(image, quality=85)
    row("the JPEG", kB=encoded.numel() / 1e3, pixels=list(size))
    ms = timed_on_cpu(lambda: decode_jpeg(encoded))
    row("decode_jpeg on one core", ms=ms, images_s=1e3 / ms)
    threads = max(1, min(16, os.cpu_count()))
    with ThreadPoolExecutor(threads) as pool:
        count = 2 if TINY else 4 * threads
        list(pool.map(decode_jpeg, [encoded] * threads))
        start = time.perf_counter()
        list(pool.map(decode_jpeg, [encoded] * count))
        row(f"decode_jpeg in {threads} threads", images_s=count / (time.perf_counter() - start))
    for count in (1, 16, 64) if CUDA else ():
        ms = timed(lambda batch=[encoded] * count: decode_jpeg(batch, device="cuda"), 0.4)
        row(f"decode_jpeg on the GPU (nvJPEG), {count} at once", ms=ms, images_s=1e3 * count / ms)


# Sections compile -----------------------------------------------------------------------------------------------------


def compile_1024_gather() -> None:
    compiled(("UNet1024", 128 if TINY else 1024, 2), gather=True, max_of_four=True)


def compile_1024() -> None:
    compiled(("UNet1024", 128 if TINY else 1024, 2))


def compile_original() -> None:
    compiled(("UNetOriginal", 188 if TINY else 572, 3), max_of_four=True)


def compiled(case: Case, gather: bool = False, max_of_four: bool = False) -> None:
    """torch.compile: how long it takes, a step, its kernels, the step in one CUDA graph, and prediction."""
    torch.backends.cudnn.benchmark = True
    name, side, batch = case
    layers = f"{', gathered upsampling' * gather}{', max of four' * max_of_four}"
    title = f"{name} {side} b{batch} compiled{layers}"
    net = make(name, side, gather, max_of_four)
    net.compile(dynamic=False, backend="aot_eager" if TINY else "inductor")
    with variant(title):
        step = Step(net, batch, "AdamW", capturable=CUDA)
        start = time.perf_counter()
        loss = step()
        sync()
        row(f"{title}: first step", seconds=time.perf_counter() - start, loss=loss.item())
        measure(title, step, batch, launch=True)
        if CUDA:
            profile(title, step, longest=8)
            with variant(f"{title}, in a graph"):
                measure(f"{title}, in a graph", capture(step), batch)
    if CUDA and name == "UNet1024":
        measure_prediction(f"{title}, predicts", net, batch)


def main() -> None:
    if not ARGS.section:
        sys.exit(0 if run_sections() else 1)
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    if not CUDA:
        torch.set_num_threads(1)
    print(f"== {ARGS.section}", flush=True)
    globals()[ARGS.section]()


if __name__ == "__main__":
    main()
