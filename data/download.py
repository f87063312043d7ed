"""Download the competition's zips from Kaggle, resuming interrupted downloads, and unpack them into the input folder.

The requests are those of Kaggle's client, which has no timeouts and appends a response without checking which bytes
it holds. `import kaggle` would also sign in over the network, so only kagglesdk is used here.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from requests.exceptions import ChunkedEncodingError

from data.credentials import SETTINGS, find_credentials
from data.unpack import RefusedError, require_space, unpack
from helpers import Progress
from runtime.errors import require, set_exit_hint
from runtime.files import save_atomically, write_errors

COMPETITION = "https://www.kaggle.com/c/carvana-image-masking-challenge"
SLUG = COMPETITION.rpartition("/")[2]
REMEDIES = {  # by status, if retrying does not help
    401: f"Create a new token at {SETTINGS}.",
    403: f"Accept the competition's rules at {COMPETITION}/rules.",
}
COUNTS = {"train": 5088, "train_hq": 5088, "train_masks": 5088, "test": 100_064, "test_hq": 100_064}  # 16 per car
CONNECT, READ_TIMEOUT = 20, 60  # seconds to wait for a connection, and for the next bytes
BACKOFF = (1, 3, 10, 30, 60)  # seconds to wait before each retry
CHUNK = 2**17  # bytes


class Kaggle:
    """A session with Kaggle's API. Methods raise UserError if a request keeps failing."""

    def __init__(self):
        from kagglesdk.kaggle_env import KaggleEnv, get_endpoint, get_env  # slow to import
        from kagglesdk.kaggle_http_client import KaggleHttpClient

        self.source, secrets = find_credentials()
        environment = get_env()
        self.url = get_endpoint(environment) + ("/v1" if environment is KaggleEnv.PROD else "/api/v1")
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"
        if "refresh_token" in secrets:
            body = {"refreshToken": secrets["refresh_token"], "apiVersion": "API_VERSION_V1",
                    "expirationDuration": "43200s"}  # 12 hours, as Kaggle's client asks for
            method = "users.AccountService/GenerateAccessToken"
            secrets = {"token": self._retry("an access token", lambda: self._post(method, body).json()["token"])}
        self.session.auth = KaggleHttpClient.BearerAuth(**secrets) if "token" in secrets else tuple(secrets.values())

    def fetch(self, name: str, part: Path) -> None:
        """Download the file `name` to `part`. Resume if `part` is of the same version."""
        set_exit_hint("The download so far is kept. Run the same command again to resume it.", part)
        self._retry(name, lambda: self._resume(name, part), lambda: _size(part))

    def _post(self, method: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> requests.Response:
        """Returns the response with its body unread."""
        response = self.session.post(f"{self.url}/{method}", json=body, headers=headers, stream=True,
                                     timeout=(CONNECT, READ_TIMEOUT))
        response.raise_for_status()
        return response

    def _resume(self, name: str, part: Path) -> None:
        version, full_size = _read_version(part)
        have = _size(part)
        if 0 < have == full_size:
            return
        headers = {"Range": f"bytes={have}-", "If-Range": version} if 0 < have < full_size else {}
        method = "competitions.CompetitionApiService/DownloadDataFile"
        with self._post(method, {"competitionName": SLUG, "fileName": name}, headers) as response:
            etag = response.headers.get("ETag")
            if response.status_code == 206:  # the rest of the file
                received = response.headers.get("Content-Range")
                if etag != version or received != f"bytes {have}-{full_size - 1}/{full_size}":
                    discard_partial(part)
                    raise requests.ConnectionError("not the requested range")
            else:  # the whole file, which is new or has changed
                discard_partial(part)
                full_size = int(response.headers.get("Content-Length", 0))
                # Images are compressed, so they take about as much space as their zip
                require_space(part.parent, 2 * full_size, f"downloading and unpacking {name}")
                with save_atomically(_version_file(part)) as file:
                    file.write(json.dumps([etag, full_size]).encode())
            _append(response, part, full_size)

    def _retry(self, what: str, attempt: Callable[[], Any], progress: Callable[[], int] = lambda: 0) -> Any:
        """Returns attempt(). If it fails, wait and retry. After `progress`, BACKOFF starts again."""
        delays, reached = iter(BACKOFF), progress()
        while True:
            try:
                return attempt()
            except OSError as error:  # the base class of the exceptions of requests
                sentence, temporary = self._explain(error, what)
            if progress() > reached:
                delays, reached = iter(BACKOFF), progress()
            delay = next(delays, None)
            require(temporary and delay is not None, sentence)
            print(f"Warning: {sentence} Retrying in {delay:g} s.")
            time.sleep(delay)

    def _explain(self, error: OSError, what: str) -> tuple[str, bool]:
        """Returns a sentence and whether to retry. The error is not quoted: it may contain a signed URL."""
        response = getattr(error, "response", None)
        if response is None:
            sentence = (f"The connection to Kaggle failed for {what} ({type(error).__name__}). Check the network, "
                        "HTTPS_PROXY, HTTP_PROXY and REQUESTS_CA_BUNDLE.")
            return sentence, isinstance(error, requests.ConnectionError | requests.Timeout | ChunkedEncodingError)
        status, redirected = response.status_code, bool(response.history)  # to a signed URL, which expires
        sentence = f"Kaggle answered {status} to the request for {what}"
        if status in REMEDIES and not redirected:
            return f"{sentence} with the credentials in {self.source}. {REMEDIES[status]}", False
        temporary = redirected or status in (408, 429) or status >= 500
        return f"{sentence}. See https://status.kaggle.com.", temporary


def _append(response: requests.Response, part: Path, size: int) -> None:
    """Append the body to `part`, which must have `size` bytes at the end."""
    with Progress(desc=part.stem, total=size, initial=_size(part), unit="B", unit_scale=True, unit_divisor=1024) as bar:
        for chunk in response.iter_content(CHUNK):
            with write_errors(part), part.open("ab") as file:
                file.write(chunk)
            bar.update(len(chunk))
    if _size(part) != size:
        raise requests.ConnectionError("not the announced length")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_version(part: Path) -> tuple[str, int]:
    """Returns the ETag and size of the file that `part` is the beginning of; ("", 0) if they are unknown or weak."""
    with suppress(OSError, ValueError, TypeError):
        version, size = json.loads(_version_file(part).read_text())
        if re.fullmatch("(?!W/)[ -~]+", version):  # printable ASCII, and strong, as If-Range requires
            return version, int(size)
    return "", 0


def discard_partial(part: Path) -> None:
    """Remove a partial download. Its version goes first: without it, `part` is never resumed."""
    for path in (_version_file(part), part):
        with write_errors(path):
            path.unlink(missing_ok=True)


def is_there(path: Path) -> bool:
    """Whether the folder exists and has something in it."""
    return any(path.glob("[!.]*"))


def is_complete(folder: Path) -> bool:
    """Whether the folder is there, without leftovers of a process that was killed."""
    leftovers = [folder.with_suffix(ending) for ending in (".zip.part", ".zip.part.json", ".part")]
    return is_there(folder) and not any(path.exists() for path in leftovers)


def download(folder: Path, names: Sequence[str]) -> None:
    """Unpack and delete the zip of each of `names`, such as train_hq, in `folder`. Download what is not there."""
    kaggle = None  # until a zip must be downloaded
    for name in names:
        target = folder / name
        archive, part = target.with_suffix(".zip"), target.with_suffix(".zip.part")
        if not is_there(target) and archive.is_file():
            unpack(archive, target)
        if not is_there(target):
            kaggle = kaggle or Kaggle()
            print(f"Downloading {archive.name} from {COMPETITION}")
            kaggle.fetch(archive.name, part)
            try:
                unpack(part, target, COUNTS[name])
            except RefusedError:
                discard_partial(part)
                raise
        discard_partial(part)
        shutil.rmtree(target.with_suffix(".part"), ignore_errors=True)
