"""Runs main.py or predict.py for a test: small_main.py main.py ARGUMENTS. The nets are small, and a folder in
memory may have a cache.

These environment variables change more:

READ_LOG: a file that gets the path of each image and mask that is read, a line each.
LOAD_LOG: a file that gets a line for each checkpoint that is read: the rank of the process, and the path.
DISTRIBUTED_TIMEOUT: in place of distributed.TIMEOUT, in seconds.
CHANGE_LOG: a file that gets a line for each change of a file in the output folder: what happens, and the file's name.
  A checkpoint that is half written is a change too.
KILL_AT: the program kills itself before this change, a line as in CHANGE_LOG or its number.
"""

import io
import os
import runpy
import signal
import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # where main.py is

import torch

import data.cache
import data.reader
from nn import unet
from runtime import distributed
from tiny import SMALL_NETS

WRITE = os.O_WRONLY | os.O_RDWR
read, save, load = data.reader.read, torch.save, torch.load
changes = []


def logged(path, *arguments):
    with open(os.environ["READ_LOG"], "a") as file:
        file.write(f"{path}\n")
    return read(path, *arguments)


def load_logged(file, **options):
    if isinstance(file, str | Path):  # not the tensors that a process gets from another one
        with open(os.environ["LOAD_LOG"], "a") as log:
            log.write(f"{distributed.RANK} {file}\n")
    return load(file, **options)


def count_change(event, arguments):
    if event not in ("open", "os.rename", "os.remove") or (event == "open" and not arguments[2] & WRITE):
        return
    path = Path(str(arguments[0]))
    if process == os.getpid() and "output" in path.parts[:-1] and path.name != ".lock" and not path.is_dir():
        note(f"{event} {path.name}")


def note(change):
    changes.append(change)
    if os.environ.get("KILL_AT") in (change, str(len(changes))):
        os.kill(os.getpid(), signal.SIGKILL)


def save_slowly(state, file):
    buffer = io.BytesIO()
    save(state, buffer)
    written = buffer.getvalue()
    file.write(written[: len(written) // 2])
    file.flush()
    note(f"half {Path(file.name).name}")
    file.write(written[len(written) // 2 :])


process = os.getpid()
unet.NETS.update(SMALL_NETS)
data.cache._file_system = lambda folder: ""
if "READ_LOG" in os.environ:
    data.reader.read = logged
if "LOAD_LOG" in os.environ:
    torch.load = load_logged
if "DISTRIBUTED_TIMEOUT" in os.environ:
    distributed.TIMEOUT = timedelta(seconds=int(os.environ["DISTRIBUTED_TIMEOUT"]))
if {"CHANGE_LOG", "KILL_AT"} & set(os.environ):
    torch.save = save_slowly
    sys.addaudithook(count_change)
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if "CHANGE_LOG" in os.environ:
        Path(os.environ["CHANGE_LOG"]).write_text("\n".join(changes))
