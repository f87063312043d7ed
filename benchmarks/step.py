"""The training step: images a second, and the share of what the machine's matrix products reach.

    python benchmarks/step.py
    python benchmarks/step.py --device cuda --steps 20
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
import tyro
from baseline import make_net, train_epoch
from measure import PRODUCT, Row, compare, matrix_product, show, take_turns
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import helpers
from nn.classifier import CarvanaClassifier
from nn.unet import NETS
from runtime import errors, machine

CASES = {  # name of the net, side of its images, images a step
    "UNetOriginal-572": ("UNetOriginal", 572, 3),
    "UNet1024-1024": ("UNet1024", 1024, 2),
    "UNet1024-256": ("UNet1024", 256, 8),
}


@dataclass
class Benchmark:
    """Times whole steps (forward, loss, backward, optimizer, metrics) of ours and of the base line in alternation.

    Beside ours, its share of the rate of a large matrix product, timed in the same rounds; the operations of a step are
    those that torch counts in its convolutions, with nothing for BatchNorm, ReLU, pooling and the optimizer. Memory is
    the peak of the whole process, with Python and torch, or on an accelerator that of the accelerator's tensors.
    """

    cases: tuple[Literal[*CASES], ...] = tuple(CASES)  # net and side of its images, at the batch size of README
    batch_size: int | None = None  # images a step, instead of 3, 2 and 8
    steps: int = 1  # of a round: more of them where one is too short to be timed, as on a GPU
    rounds: int = 3  # each side works so often, after a round to warm up
    device: str = "cpu"  # or cuda, mps, ...
    precision: Literal["float32", "bfloat16", "float16"] | None = None  # of ours; None takes what main.py takes
    compile: bool = False  # ours through torch.compile
    json: bool = False  # an object for each row

    def __post_init__(self):
        errors.check_ranges(self, steps="[1, inf)", rounds="[1, inf)", batch_size="[1, inf)")
        machine.choose_device(self.device)  # which refuses one that isn't there


def our_step(
    name: str,
    side: int,
    batch: int,
    precision: torch.dtype,
    compile: bool,
    steps: int = 1,
    device: str = "cpu",
) -> Callable[[], object]:
    """A round of ours; it reads the loss at its end, so that nothing is still being computed then."""
    device = machine.choose_machine(device).device
    helpers.seed_everything(0)
    net = NETS[name]((3, side, side))
    if compile:
        net.compile()
    classifier = CarvanaClassifier(net, epochs=1, device=device, precision=precision)
    classifier.optimizer = torch.optim.RMSprop(net.parameters(), lr=0.0002)
    images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8)
    masks = torch.randint(2, (batch, *net.output_size), dtype=torch.uint8) * 255
    pairs = list(zip(images, masks, strict=True)) * steps
    loader = DataLoader(pairs, batch_size=batch, pin_memory=device.type == "cuda")
    return lambda: classifier.run_epoch(loader, "train")


def plain_step(name: str, side: int, batch: int, steps: int = 1, device: str = "cpu") -> Callable[[], object]:
    torch.manual_seed(0)
    device = machine.choose_device(device)[0]
    net, output_size = make_net(name).to(device), NETS[name]((3, side, side)).output_size
    optimizer = torch.optim.RMSprop(net.parameters(), lr=0.0002)
    images = torch.rand(batch, 3, side, side)
    masks = torch.randint(2, (batch, *output_size)).float()
    loader = DataLoader(list(zip(images, masks, strict=True)) * steps, batch_size=batch)
    return lambda: train_epoch(net, loader, optimizer)


def operations(name: str, side: int, batch: int) -> int:
    """Of the convolutions of a step, forward and backward."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        NETS[name]((3, side, side))(torch.zeros(batch, 3, side, side)).sum().backward()
    return counter.get_total_flops()


def product_row(benchmark: Benchmark) -> Row:
    """The matrix product in ours and in float32."""
    where = benchmark.steps, benchmark.device
    types = precision(benchmark), torch.float32
    products = take_turns(benchmark.rounds, *((matrix_product, each, *where) for each in types))
    rates = ([benchmark.steps * PRODUCT / 1e9 / s for s in side.seconds] for side in products)
    return compare(f"matrix product, {str(precision(benchmark))[6:]} / float32", "GFLOP/s", *rates)


def step_rows(benchmark: Benchmark) -> Iterator[Row]:
    where = benchmark.steps, benchmark.device
    for case in benchmark.cases:
        name, side, batch = CASES[case]
        batch = benchmark.batch_size or batch
        ours, plain, product = take_turns(
            benchmark.rounds,
            (our_step, name, side, batch, precision(benchmark), benchmark.compile, *where),
            (plain_step, name, side, batch, *where),
            (matrix_product, precision(benchmark), *where),
        )
        rates = ([benchmark.steps * batch / s for s in each.seconds] for each in (ours, plain))
        title = f"step {name} {side}x{side}, {batch} a step"
        row = compare(title, "images/s", *rates)
        row.matrix_share = operations(name, side, batch) / PRODUCT * median(product.seconds) / median(ours.seconds)
        yield row
        yield compare(f"{title}, memory", "MiB", [ours.peak], [plain.peak], lower_is_better=True)


def precision(benchmark: Benchmark) -> torch.dtype:
    return machine.choose_machine(benchmark.device, benchmark.precision).precision


def rows(benchmark: Benchmark) -> Iterator[Row]:
    yield product_row(benchmark)
    yield from step_rows(benchmark)


if __name__ == "__main__":
    with errors.friendly_errors():
        benchmark = tyro.cli(Benchmark)
        show(rows(benchmark), benchmark.json)
