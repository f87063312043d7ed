"""Runs main.py and changes it for a test, with environment variables.

READ_LOG: a file that gets the path of each image and mask that is read, a line each.
DISTRIBUTED_TIMEOUT: in place of distributed.TIMEOUT, in seconds.
"""

import os
import runpy
import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # where main.py is

import data.dataset
from runtime import distributed

read = data.dataset.read


def logged(path, *arguments):
    with open(os.environ["READ_LOG"], "a") as file:
        file.write(f"{path}\n")
    return read(path, *arguments)


if "READ_LOG" in os.environ:
    data.dataset.read = logged
if "DISTRIBUTED_TIMEOUT" in os.environ:
    distributed.TIMEOUT = timedelta(seconds=int(os.environ["DISTRIBUTED_TIMEOUT"]))
sys.argv = sys.argv[1:]
runpy.run_path("main.py", run_name="__main__")
