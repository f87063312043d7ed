"""Download the competition's zips from Kaggle, resuming interrupted downloads, and unpack them into the input folder.

The requests are those of Kaggle's client, which has no timeouts and appends a response without checking which bytes
it holds. `import kaggle` would also sign in over the network, so only its package kagglesdk is used here.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import requests
from kagglesdk.kaggle_env import KaggleEnv, get_endpoint, get_env
from kagglesdk.kaggle_http_client import KaggleHttpClient
from requests.exceptions import ChunkedEncodingError, InvalidJSONError, SSLError

from data.credentials import SETTINGS, find_credentials
from data.unpack import RefusedError, format_bytes, require_space, unpack
from helpers import Progress
from runtime.errors import UserError, require, set_exit_hint
from runtime.files import save_atomically, write_errors

COMPETITION = "https://www.kaggle.com/c/carvana-image-masking-challenge"
SLUG = COMPETITION.rpartition("/")[2]
REMEDIES = {  # by status, if retrying does not help
    401: f"Create a new token at {SETTINGS}.",
    403: f"Accept the competition's rules at {COMPETITION}/rules.",
    404: f"See {COMPETITION}/data.",
}
COUNTS = {"train": 5088, "train_hq": 5088, "train_masks": 5088, "test": 100_064, "test_hq": 100_064}  # 16 per car
GROWTH = {"train_masks": 1.5, "sample_submission.csv": 12}  # unpacked bytes on disk per byte of the zip
IMAGE_GROWTH = 1.25
CONNECT, READ_TIMEOUT = 20, 60  # seconds to wait for a connection, and for the next bytes
BACKOFF = (1, 3, 10, 30, 60)  # seconds to wait before each retry
MAX_BACKOFF = 600  # seconds, even if the server asks for more
CHUNK = 2**17  # bytes
T = TypeVar("T")


class Kaggle:
    """A session with Kaggle's API. Methods raise UserError if a request keeps failing."""

    def __init__(self):
        self.source, secrets = find_credentials()
        try:
            environment = get_env()
        except Exception as error:  # the client raises a bare Exception
            raise UserError(f"{error}. Unset it or set it to PROD.") from None
        self.url = get_endpoint(environment) + ("/v1" if environment is KaggleEnv.PROD else "/api/v1")
        self.session = requests.Session()
        self.session.headers["Accept-Encoding"] = "identity"
        if "refresh_token" in secrets:
            body = {"refreshToken": secrets["refresh_token"], "apiVersion": "API_VERSION_V1"}
            body["expirationDuration"] = "43200s"  # 12 hours, as Kaggle's client asks for
            method = "users.AccountService/GenerateAccessToken"
            secrets = {"token": self._ask("an access token", method, body, lambda answer: answer["token"])}
        bearer = "token" in secrets
        self.session.auth = KaggleHttpClient.BearerAuth(**secrets) if bearer else (secrets["username"], secrets["key"])

    def list_files(self) -> dict[str, int]:
        """Returns the size in bytes of each file of the competition."""
        sizes, body = {}, {"competitionName": SLUG, "pageSize": 200}
        while True:
            method = "competitions.CompetitionApiService/ListDataFiles"
            files, next_page = self._ask("the file list", method, body, _read_page)
            sizes |= files
            if not next_page:
                return sizes
            body["pageToken"] = next_page

    def fetch(self, name: str, part: Path, size: int) -> None:
        """Download the file `name`, of about `size` bytes, to `part`. Resume if `part` is of the same version."""
        set_exit_hint("The download so far is kept. Run the same command again to resume it.", part)
        self.retry(name, lambda: self._resume(name, part, size), lambda: _size(part))

    def _post(self, method: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> requests.Response:
        """Returns the response with its body unread."""
        options = {"stream": True, "timeout": (CONNECT, READ_TIMEOUT)}
        response = self.session.post(f"{self.url}/{method}", json=body, headers=headers, **options)
        response.raise_for_status()
        return response

    def _ask(self, what: str, method: str, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """Returns what `read` finds in the JSON of the response."""

        def attempt() -> T:
            answer = self._post(method, body).json()
            try:
                return read(answer)
            except (AttributeError, KeyError, TypeError) as error:
                raise InvalidJSONError from error

        return self.retry(what, attempt)

    def _resume(self, name: str, part: Path, size: int) -> None:
        version, full_size = _read_version(part)
        have = _size(part) if version else 0
        if have and have == full_size:
            return
        headers = {"Range": f"bytes={have}-", "If-Range": version} if 0 < have < full_size else {}
        method = "competitions.CompetitionApiService/DownloadDataFile"
        with self._post(method, {"competitionName": SLUG, "fileName": name}, headers) as response:
            if response.status_code == 206:  # the rest of the file
                received = response.headers.get("Content-Range", "")
                if _version(response) != version or not re.fullmatch(rf"bytes {have}-\d+/{full_size}", received):
                    discard_partial(part)
                    raise requests.ConnectionError("not the requested range")
            else:  # the whole file, which is new or has changed
                discard_partial(part)
                have, full_size = 0, int(response.headers.get("Content-Length") or size)
                _write_version(part, _version(response), full_size)
            _append(response, part, have, full_size)

    def retry(self, what: str, attempt: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Returns attempt(). If it fails, wait and retry. After `progress`, BACKOFF starts again."""
        delays, reached = iter(BACKOFF), progress()
        while True:
            try:
                return attempt()
            except OSError as error:  # the base class of the exceptions of requests
                sentence, temporary = self._explain(error, what)
                retry_after = _retry_after(error)
            if progress() > reached:
                delays, reached = iter(BACKOFF), progress()
            delay = next(delays, None)
            require(temporary and delay is not None, sentence)
            delay = max(delay, retry_after)
            print(f"Warning: {sentence} Retrying in {delay:g} s.")
            time.sleep(delay)

    def _explain(self, error: OSError, what: str) -> tuple[str, bool]:
        """Returns a sentence and whether to retry. The error is not quoted: it may contain a signed URL."""
        if error.errno:
            raise error  # of a file; those of requests have no errno
        response = getattr(error, "response", None)
        if response is not None:
            status, redirected = response.status_code, bool(response.history)  # to a signed URL, which expires
            if status in REMEDIES and not redirected:
                sentence = f"Kaggle answered {status} to the request for {what} with the credentials in {self.source}."
                return f"{sentence} {REMEDIES[status]}", False
            sentence = f"Kaggle answered {status} to the request for {what}. See https://status.kaggle.com."
            return sentence, redirected or status in (408, 429) or status >= 500
        if isinstance(error, InvalidJSONError):
            return f"The server that answered for {what} is not Kaggle. Log in if this network requires it.", True
        sentence = (
            f"The connection to Kaggle failed for {what} ({type(error).__name__}). Check the network, HTTPS_PROXY, "
            f"HTTP_PROXY and REQUESTS_CA_BUNDLE, or copy the zips from {COMPETITION}/data by hand."
        )
        interrupted = isinstance(error, requests.ConnectionError | requests.Timeout | ChunkedEncodingError)
        return sentence, interrupted and not isinstance(error, SSLError)


def _read_page(page: dict[str, Any]) -> tuple[dict[str, int], str | None]:
    return {file["name"]: file.get("totalBytes", 0) for file in page["files"]}, page.get("nextPageToken")


def _retry_after(error: OSError) -> int:
    """Returns how many seconds the server asks to wait, at most MAX_BACKOFF. A date in their place is ignored."""
    response = getattr(error, "response", None)
    seconds = "" if response is None else response.headers.get("Retry-After", "")
    return min(int(seconds), MAX_BACKOFF) if seconds.isdecimal() else 0


def _append(response: requests.Response, part: Path, have: int, size: int) -> None:
    """Append the body to `part`, which has `have` bytes and must have `size` at the end."""
    with Progress(desc=part.stem, total=size, initial=have, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        for chunk in response.iter_content(CHUNK):
            with write_errors(part), part.open("ab") as file:
                file.write(chunk)
            bar.update(len(chunk))
    if _size(part) != size:
        raise requests.ConnectionError("not the announced length")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _version(response: requests.Response) -> str:
    """Returns what If-Range accepts: a strong ETag, else Last-Modified, else nothing."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if tag.startswith("W/") else tag


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_version(part: Path, version: str, size: int) -> None:
    with save_atomically(_version_file(part)) as file:
        file.write(json.dumps([version, size]).encode())


def _read_version(part: Path) -> tuple[str, int]:
    """Returns the version and size of the file that `part` is the beginning of; ("", 0) if that is unknown."""
    with suppress(OSError, ValueError, TypeError):
        version, size = json.loads(_version_file(part).read_text())
        if isinstance(size, int) and re.fullmatch("[ -~]+", version):  # printable ASCII
            return version, size
    return "", 0


def discard_partial(part: Path) -> None:
    """Remove a partial download. Its version goes first: without it, `part` is never resumed."""
    for path in (_version_file(part), part):
        with write_errors(path):
            path.unlink(missing_ok=True)


def part_of(folder: Path, name: str) -> Path:
    """Returns the path of the zip while it is being downloaded."""
    return folder / f"{name}.zip.part"


def leftovers(folder: Path, name: str) -> list[Path]:
    """Returns what a killed process left of downloading and unpacking the zip of that name."""
    part = part_of(folder, name)
    return [path for path in (part, _version_file(part), folder / f"{name}.part") if path.exists()]


def is_there(path: Path) -> bool:
    """Returns whether a file such as sample_submission.csv exists, or a folder such as train with something in it."""
    if path.suffix:
        return path.is_file()
    return path.is_dir() and any(not inside.name.startswith(".") for inside in path.iterdir())


def find_zip(folder: Path, name: str) -> Path | None:
    path = folder / f"{name}.zip"
    return path if path.is_file() else None


def download(folder: Path, names: Sequence[str]) -> None:
    """Put each of `names`, such as train_hq or sample_submission.csv, into `folder`.

    Unpack its zip, downloaded from Kaggle if it is not in `folder`, and delete the zip. Raises UserError if the
    credentials, a download, a zip or the free space do not allow it.
    """
    missing = []
    for name in names:
        path = folder / name
        if is_there(path):  # the process was killed before it removed the rest
            discard_partial(part_of(folder, name))
            shutil.rmtree(folder / f"{name}.part", ignore_errors=True)
            continue
        empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        require(empty or not os.path.lexists(path), f"{path} exists but contains no images. Remove it.")
        missing.append(name)
    to_fetch = [name for name in missing if find_zip(folder, name) is None]
    if to_fetch:
        kaggle = Kaggle()
        sizes = kaggle.list_files()
        gone = [f"{name}.zip" for name in to_fetch if f"{name}.zip" not in sizes]
        require(not gone, f"Kaggle no longer has {' and '.join(gone)}. See {COMPETITION}/data.")
        _require_space_for_all(folder, {name: sizes[f"{name}.zip"] for name in to_fetch})
    for name in missing:
        if name in to_fetch:
            _fetch_and_unpack(kaggle, folder, name, sizes[f"{name}.zip"])
        else:
            unpack(find_zip(folder, name), folder / name)


def _fetch_and_unpack(kaggle: Kaggle, folder: Path, name: str, size: int) -> None:
    part = part_of(folder, name)
    print(f"Downloading {name}.zip ({format_bytes(size)}) from {COMPETITION}")
    kaggle.fetch(f"{name}.zip", part, size)
    try:
        unpack(part, folder / name, COUNTS.get(name))
    except RefusedError:
        discard_partial(part)
        raise
    discard_partial(part)


def _require_space_for_all(folder: Path, sizes: dict[str, int]) -> None:
    """sizes: of the zips, each of which is downloaded, unpacked and deleted before the next."""
    unpacked = sum(size * GROWTH.get(name, IMAGE_GROWTH) for name, size in sizes.items())
    here = sum(_size(part_of(folder, name)) for name in sizes)
    needed = round(unpacked) + max(sizes.values()) - here
    require_space(folder, needed, f"downloading and unpacking {', '.join(f'{name}.zip' for name in sizes)}")
