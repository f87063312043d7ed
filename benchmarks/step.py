"""The training step in each mode: images per second, and the fraction of the speed of the machine's matrix products.

    python benchmarks/step.py
    python benchmarks/step.py --device cuda --steps 20
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import torch
import tyro
from baseline import make_net, train_epoch
from measure import PRODUCT, Row, compare, matrix_product, random_dataset, show, take_turns
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import helpers
from nn.classifier import CarvanaClassifier
from nn.unet import NETS
from runtime.errors import check_ranges, friendly_errors
from runtime.machine import choose_device, choose_machine

CASES = {  # net, side of its images, batch size
    "UNetOriginal-572": ("UNetOriginal", 572, 3),
    "UNet1024-1024": ("UNet1024", 1024, 2),
    "UNet1024-256": ("UNet1024", 256, 8),
}


@dataclass
class Benchmark:
    """Times training steps (forward, loss, backward, optimizer, metrics) of ours and of the baseline in alternation.

    Ours also copies each batch to the device as uint8, and pads and scales it there. If a mode fails, the others go on.
    The matrix share is the speed of our step relative to a large matrix product in the same rounds. It counts the
    operations of the convolutions, and none of BatchNorm, ReLU, pooling and the optimizer. Memory is the peak of the
    whole process, with Python and PyTorch; on an accelerator, that of the tensors there.
    """

    cases: tuple[Literal[*CASES], ...] = tuple(CASES)  # net and side of its images, at the README's batch size
    batch_size: int | None = None  # images per batch instead of 3, 2 and 8
    steps: int = 1  # per round; raise it if one step is too short to be timed, as on a GPU
    rounds: int = 3  # per side, after a warm-up round
    device: str = "cpu"  # or cuda, mps, ...
    precision: Literal["float32", "bfloat16", "float16"] | None = None  # of ours; None: as main.py chooses
    mode: tuple[Literal["eager", "CUDA graph", "compile"], ...] = ()  # of ours; none: eager, and all three on a GPU
    json: bool = False  # print a JSON object per row

    def __post_init__(self):
        check_ranges(self, steps="[1, inf)", rounds="[1, inf)", batch_size="[1, inf)")
        choose_device(self.device)  # raises UserError if this machine has no such device

    @property
    def dtype(self) -> torch.dtype:
        return choose_machine(self.device, self.precision).precision

    @property
    def modes(self) -> tuple[str, ...]:
        """Those asked for, or else those that main.py can choose."""
        machine = choose_machine(self.device, self.precision)
        compiled = ("compile",) if machine.device.type == "cuda" else ()  # on a CPU, it takes a minute for no gain
        return self.mode or tuple(dict.fromkeys(("eager", machine.mode, *compiled)))


def our_step(
    name: str,
    side: int,
    batch: int,
    steps: int = 1,
    device: str = "cpu",
    precision: str | None = None,
    mode: str = "eager",
) -> Callable[[], object]:
    """A round of ours. It reads the loss at the end, and so waits until everything is computed.

    Raises RuntimeError if the net does not run in that mode.
    """
    machine = replace(choose_machine(device, precision, workers=0), mode=mode)
    helpers.seed_everything(0)
    net = NETS[name]((3, side, side))
    classifier = CarvanaClassifier(net, epochs=1, machine=machine)
    classifier.optimizer = torch.optim.RMSprop(net.parameters(), lr=0.0002)
    loader = DataLoader(random_dataset(net, batch, steps), batch, pin_memory=machine.device.type == "cuda")

    def work() -> None:
        classifier.train_epoch(loader)
        if mode != "eager" and net in classifier.model.faster.values():
            raise RuntimeError(f"mode {mode} failed: this step was in eager mode")

    return work


def plain_step(name: str, side: int, batch: int, steps: int = 1, device: str = "cpu") -> Callable[[], object]:
    """A round of the baseline."""
    torch.manual_seed(0)
    net = make_net(name).to(choose_device(device)[0])
    optimizer = torch.optim.RMSprop(net.parameters(), lr=0.0002)
    images = torch.rand(batch, 3, side, side)
    masks = torch.randint(2, (batch, *NETS[name].check((side, side)))).float()
    loader = DataLoader(list(zip(images, masks, strict=True)) * steps, batch_size=batch)
    return lambda: train_epoch(net, loader, optimizer)


def count_operations(name: str, side: int, batch: int) -> int:
    """The floating-point operations of the convolutions of a step, forward and backward."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        NETS[name]((3, side, side))(torch.zeros(batch, 3, side, side)).sum().backward()
    return counter.get_total_flops()


def product_row(benchmark: Benchmark) -> Row:
    """The matrix product in the precision of ours and in float32."""
    types = benchmark.dtype, torch.float32
    sides = ((matrix_product, dtype, benchmark.steps, benchmark.device) for dtype in types)
    products = take_turns(benchmark.rounds, *sides)
    speeds = ([benchmark.steps * PRODUCT / 1e9 / seconds for seconds in side.seconds] for side in products)
    return compare(f"matrix product, {str(benchmark.dtype)[6:]} / float32", "GFLOP/s", *speeds)


def step_rows(benchmark: Benchmark) -> Iterator[Row]:
    failed = False
    for case in benchmark.cases:
        for mode in benchmark.modes:
            try:
                yield from mode_rows(case, mode, benchmark)
            except SystemExit:
                print(f"{case}, {mode}: failed, for the reason above.", file=sys.stderr)
                failed = True
    if failed:
        sys.exit(1)


def mode_rows(case: str, mode: str, benchmark: Benchmark) -> Iterator[Row]:
    where, (name, side, batch) = (benchmark.steps, benchmark.device), CASES[case]
    batch = benchmark.batch_size or batch
    ours, plain, product = take_turns(
        benchmark.rounds,
        (our_step, name, side, batch, *where, benchmark.precision, mode),
        (plain_step, name, side, batch, *where),
        (matrix_product, benchmark.dtype, *where),
    )
    speeds = ([benchmark.steps * batch / seconds for seconds in each.seconds] for each in (ours, plain))
    title = f"step {name} {side}x{side}, batch size {batch}, {mode}"
    row = compare(title, "images/s", *speeds)
    products = count_operations(name, side, batch) / PRODUCT
    row.matrix_share = products * median(product.seconds) / median(ours.seconds)
    yield row
    yield compare(f"{title}, memory", "MiB", [ours.peak], [plain.peak], lower_is_better=True)


def rows(benchmark: Benchmark) -> Iterator[Row]:
    yield product_row(benchmark)
    yield from step_rows(benchmark)


if __name__ == "__main__":
    with friendly_errors():
        benchmark = tyro.cli(Benchmark)
        show(rows(benchmark), benchmark.json)
