"""Download the competition's zips with Kaggle's client, and unpack them into the input folder.

The retries are ours: the client's keep a signed URL that has expired, print it, and wait for a full disk.
"""

import os
import shutil
import time
import zipfile
from contextlib import redirect_stdout
from functools import partialmethod
from pathlib import Path

import requests
from requests.exceptions import ChunkedEncodingError

from data.unpack import RefusedError, require_space, unpack
from helpers import Progress
from runtime.errors import UserError, require, set_exit_hint
from runtime.files import write_errors

COMPETITION = "https://www.kaggle.com/c/carvana-image-masking-challenge"
SLUG = COMPETITION.rpartition("/")[2]
SETTINGS = "https://www.kaggle.com/settings/api"
REMEDIES = {  # by status, if retrying does not help
    401: f"Create a new token at {SETTINGS}.",
    403: f"Accept the competition's rules at {COMPETITION}/rules.",
}
TEST_COUNT = 100_064  # of Kaggle's images
TIMEOUT = 60  # seconds to wait for a connection, and for the next bytes; the client sets none
BACKOFF = (1, 3, 10, 30, 60)  # seconds to wait before each retry

requests.Session.send = partialmethod(requests.Session.send, timeout=TIMEOUT)  # the default


def sign_in() -> bool:
    """Returns whether Kaggle's client finds valid credentials. Raises UserError if it fails."""
    os.environ["VERBOSE"] = "false"  # or the client may print secrets
    try:
        with redirect_stdout(None):  # without any, it prints a help page and exits
            from kaggle import api  # slow to import

            api.authenticate()
    except SystemExit:
        return False
    except Exception as error:
        raise UserError(_explain(error, "the sign-in")[0]) from None
    return True


def _fetch(name: str, part: Path) -> None:
    """Download the file `name` to `part`, with retries. After progress, BACKOFF starts again."""
    delays, reached = iter(BACKOFF), _size(part)
    while True:
        try:
            return _resume(name, part)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None):  # not the network's
                with write_errors(part):
                    raise
            sentence, temporary = _explain(error, name)
        if _size(part) > reached:
            delays, reached = iter(BACKOFF), _size(part)
        delay = next(delays, None)
        require(temporary and delay is not None, sentence)
        print(f"Warning: {sentence} Retrying in {delay:g} s.")
        time.sleep(delay)


def _resume(name: str, part: Path) -> None:
    """Download the file `name` to `part`, or what is missing of the same version."""
    from kaggle import api
    from kaggle.api import kaggle_api_extended
    from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest

    # Its own bar comes with messages that contain signed URLs
    kaggle_api_extended.tqdm = lambda disable, **options: Progress(desc=name, **options)
    request = ApiDownloadDataFileRequest()
    request.competition_name, request.file_name = SLUG, name
    with api.build_kaggle_client() as client:
        response = client.competitions.competition_api_client.download_data_file(request)
        size = int(response.headers.get("Content-Length", 0))
        # Unpacked images take about as much space as their zip
        require_space(part.parent, 2 * size - _size(part), f"downloading and unpacking {name}")
        api.download_file(response, str(part), client.http_client(), quiet=True, resume=True, max_retries=0,
                          timeout=TIMEOUT)


def _explain(error: Exception, what: str) -> tuple[str, bool]:
    """Returns a sentence and whether to retry. The error may contain secrets or signed URLs, so it is not quoted."""
    response = getattr(error, "response", None)
    if response is None:
        sentence = (f"The connection to Kaggle failed for {what} ({type(error).__name__}). Check the network, "
                    "HTTPS_PROXY, HTTP_PROXY, REQUESTS_CA_BUNDLE and your Kaggle credentials.")
        return sentence, isinstance(error, requests.ConnectionError | requests.Timeout | ChunkedEncodingError)
    status, signed = response.status_code, response.request.method == "GET"  # a signed URL, which expires
    sentence = f"Kaggle answered {status} to the request for {what}."
    if status in REMEDIES and not signed:
        return f"{sentence} {REMEDIES[status]}", False
    return f"{sentence} See https://status.kaggle.com.", signed or status in (408, 429) or status >= 500


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _leftovers(folder: Path) -> list[Path]:
    """What a killed process left: a partial zip, the client's note of its version, a partial folder."""
    paths = [folder.with_suffix(ending) for ending in (".zip.part", ".zip.part.kaggle-partial", ".part")]
    return [path for path in paths if path.exists()]


def discard_partial(folder: Path) -> None:
    for path in _leftovers(folder):
        with write_errors(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_there(path: Path) -> bool:
    """Whether the folder exists and has something in it."""
    return any(path.glob("[!.]*"))


def is_complete(folder: Path) -> bool:
    return is_there(folder) and not _leftovers(folder)


def download(folder: Path, names: list[str]) -> None:
    """Unpack and delete the zip of each of `names`, such as train_hq, in `folder`. Download what is not there."""
    for name in names:
        target = folder / name
        archive, part = target.with_suffix(".zip"), target.with_suffix(".zip.part")
        if not is_there(target) and archive.is_file():
            unpack(archive, target)
        if not is_there(target):
            set_exit_hint("The download so far is kept. Run the same command again to resume it.", part)
            if not zipfile.is_zipfile(part):  # complete
                print(f"Downloading {archive.name} from {COMPETITION}")
                _fetch(archive.name, part)
            try:
                unpack(part, target)
            except RefusedError:
                discard_partial(target)
                raise
        discard_partial(target)
