"""Kaggle -> input/: signs in, fetches zips so that a broken download goes on where it broke, and has them unpacked.

Through kagglesdk, the client inside the package kaggle. `import kaggle` itself would sign in over the network before
it is asked to, without a limit of time, and end the program with a page of help where that fails.
"""

import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import requests
from kagglesdk import KaggleClient, KaggleCredentials, get_access_token_from_env
from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest, ApiListDataFilesRequest
from kagglesdk.kaggle_env import get_env
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from data.unpack import RefusedError, format_bytes, require_space, unpack
from helpers import Progress
from runtime.errors import UserError, require, set_exit_hint
from runtime.files import File, save_atomically, write_errors

COMPETITION = "https://www.kaggle.com/c/carvana-image-masking-challenge"
SLUG = COMPETITION.rpartition("/")[2]
SETTINGS = "https://www.kaggle.com/settings/api"
COUNTS = {"train": 5088, "train_hq": 5088, "train_masks": 5088, "test": 100_064, "test_hq": 100_064}  # 16 of each car
GROWTH = {"train_masks": 1.5, "metadata.csv": 12, "sample_submission.csv": 12}  # bytes on the disk for one of the zip
GROWTH_OF_PHOTOS = 1.25
CONNECT, READ_TIMEOUT = 20, 60  # seconds to wait for a connection, and for a server that says nothing
BACKOFF = (1, 3, 10, 30, 60)  # seconds before each new try of what failed; one that got further begins anew
MAX_BACKOFF = 600  # seconds, whatever a server asks for
CHUNK = 2**17  # bytes
T = TypeVar("T")


def find_credentials() -> tuple[str, dict[str, str]] | None:
    """-> where they were found, and what KaggleClient takes; None where there are none. The first of these counts:

    1. KAGGLE_API_TOKEN, then the file ~/.kaggle/access_token
    2. KAGGLE_USERNAME and KAGGLE_KEY; the tutorial's KAGGLE_USER and KAGGLE_PASSWD mean the same
    3. kaggle.json in KAGGLE_CONFIG_DIR, ~/.kaggle or ~/.config/kaggle
    4. ~/.kaggle/credentials.json, which `kaggle auth login` leaves

    Kaggle's own client has this order too, but for the tutorial's names, which it doesn't know: one account fetches the
    photos and uploads the masks.
    """
    home = Path(os.path.expanduser("~"))
    token, source = os.environ.get("KAGGLE_API_TOKEN", "").strip(), "KAGGLE_API_TOKEN"
    if len(token) < 256:  # the client asks whether a file has that name, and a longer one is none
        try:
            token, source = get_access_token_from_env()
        except (OSError, ValueError):  # whose text may be the token
            place = source if token else "~/.kaggle/access_token"
            raise UserError(f"What {place} names or holds can't be read: make a token at {SETTINGS}.") from None
    if token:
        source = "~/.kaggle/access_token" if source == "access_token" else source
        return source, _clean_secret(source, api_token=token)

    user, key = (
        next((name for name in names if os.environ.get(name, "").strip()), None)
        for names in (("KAGGLE_USERNAME", "KAGGLE_USER"), ("KAGGLE_KEY", "KAGGLE_PASSWD"))
    )
    other = "KAGGLE_KEY" if user else "KAGGLE_USERNAME"
    require(bool(user) == bool(key), f"{user or key} is set, but {other} isn't: set both, or neither.")
    if user:
        return f"{user} and {key}", _clean_secret(key, username=os.environ[user], password=os.environ[key])

    folders = [Path(os.environ.get("KAGGLE_CONFIG_DIR") or home / ".kaggle"), home / ".kaggle", home / ".config/kaggle"]
    file = next((folder / "kaggle.json" for folder in folders if (folder / "kaggle.json").exists()), None)
    if file:
        try:
            held = json.loads(file.read_text(encoding="utf-8-sig"))
            return str(file), _clean_secret(file, username=held["username"], password=held["key"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file} holds no username and key: have it made anew at {SETTINGS}.") from None
    file = home / ".kaggle/credentials.json"
    return (str(file), {}) if file.exists() else None


def _clean_secret(source: object, **secrets: str) -> dict[str, str]:
    """The secrets without the space around them. What can't be sent would come back in an error, so it is not tried."""
    secrets = {name: secret.strip() for name, secret in secrets.items()}
    fits = all(secret and secret.isascii() and secret.isprintable() for secret in secrets.values())
    require(fits, f"What {source} holds can't be a key: copy it once more from {SETTINGS}.")
    return secrets


class TimeoutAdapter(HTTPAdapter):
    """Gives up on a server that says nothing. The client sets no limit."""

    def send(self, request, stream=False, timeout=None, **options):
        return super().send(request, stream, timeout or (CONNECT, READ_TIMEOUT), **options)


class Kaggle:
    """The competition's zips, through Kaggle's client. Raises UserError where they can't be had."""

    def __init__(self):
        self.source, secrets = find_credentials()
        try:
            get_env()
        except Exception as error:  # which is of no type of its own
            raise UserError(f"{error}: unset it, or say PROD.") from None
        self._sign_in(**secrets)
        if not secrets:  # what `kaggle auth login` left: the client makes a token of it, and renews that
            no_login = f"{self.source} holds no login: say once more kaggle auth login"
            try:
                login = KaggleCredentials.load(self._client)
            except (OSError, ValueError, TypeError, AttributeError):
                raise UserError(no_login) from None
            token = login and self.retry("a token", lambda: _of_kaggle(login.get_access_token))
            require(bool(token), no_login)
            self._sign_in(api_token=token)

    def _sign_in(self, **secrets: str) -> None:
        self._client = KaggleClient(**secrets).__enter__()
        self._session = self._client.http_client()._session  # limits and headers have no other way in
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, TimeoutAdapter())
        self._files = self._client.competitions.competition_api_client

    def sizes(self) -> dict[str, int]:
        """-> the bytes of each file of the competition."""
        sizes, request = {}, ApiListDataFilesRequest()
        request.competition_name, request.page_size = SLUG, 200
        while True:
            listed = self.retry("the list of its files", lambda: _of_kaggle(self._files.list_data_files, request))
            new = {file.name: file.total_bytes or 0 for file in listed.files if file.name not in sizes}
            sizes |= new
            if not new or not listed.next_page_token:
                return sizes
            request.page_token = listed.next_page_token

    def fetch(self, name: str, part: Path, size: int) -> None:
        """Write the file `name`, of some `size` bytes, to `part`, going on behind what is there of the same version."""
        set_exit_hint("What has been fetched is kept, and the same command goes on.", part)
        self.retry(name, lambda: self._go_on(name, part, size), lambda: part.stat().st_size if part.exists() else 0)

    def _go_on(self, name: str, part: Path, size: int) -> None:
        known = _read_version(part)
        have = part.stat().st_size if known and part.exists() else 0
        if have and have == known["size"]:
            return
        behind = {"Range": f"bytes={have}-", "If-Range": known["version"]} if 0 < have < known.get("size", 0) else {}
        with self._ask_for(name, part, behind) as response:
            if behind and response.status_code == 206:
                asked = re.match(rf"bytes {have}-\d+/{known['size']}$", response.headers.get("Content-Range", ""))
                if not asked or _version(response) != known["version"]:
                    discard_partial(part)
                    raise requests.ConnectionError("this is not what it was asked for")
                _append(response, part, have, known["size"])
            elif response.headers.get("Content-Type", "").startswith("text/html"):  # of a login, as hotels have it
                raise requests.RequestException("a page in place of the file")
            else:  # from the beginning, as it is new, or has changed meanwhile
                discard_partial(part)
                size = int(response.headers.get("Content-Length") or size)
                if _version(response):
                    with save_atomically(_version_file(part)) as file:
                        file.write(json.dumps({"version": _version(response), "size": size}).encode())
                _append(response, part, 0, size)

    def _ask_for(self, name: str, part: Path, headers: dict[str, str]) -> requests.Response:
        """The answer, of which only the headers have been read."""
        request = ApiDownloadDataFileRequest()
        request.competition_name, request.file_name = SLUG, name
        headers = headers | {"Accept-Encoding": "identity"}
        self._session.headers.update(headers)  # they go along where Kaggle redirects to
        try:
            return _of_kaggle(self._files.download_data_file, request)
        except requests.HTTPError as error:
            if error.response.status_code == 416:  # the file has become shorter than what is here
                discard_partial(part)
            raise
        finally:
            for header in headers:
                del self._session.headers[header]

    def retry(self, what: str, attempt: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """What attempt() returns. It is tried again after BACKOFF, where that may help, and says so."""
        waits, reached = iter(BACKOFF), progress()
        while True:
            try:
                return attempt()
            except (OSError, ValueError) as error:  # those of requests, and of JSON that is none
                sentence, may_help = self._explain(error, what)
                asked = _asked_to_wait(error)
            if progress() > reached:
                waits, reached = iter(BACKOFF), progress()
            wait = next(waits, None)
            require(may_help and wait is not None, sentence)
            wait = max(wait, asked)
            print(f"{sentence} Trying again in {wait:g} s.")
            time.sleep(wait)

    def _explain(self, error: Exception, what: str) -> tuple[str, bool]:
        """A sentence, which never quotes the error: that may hold a signed address. And whether a new try may help."""
        response = getattr(error, "response", None)
        if response is not None:
            status = response.status_code
            refusals = {
                401: f"Kaggle doesn't know the key in {self.source} (401): it is wrong or expired. Make a new one at "
                f"{SETTINGS}.",
                403: f"Kaggle gives {what} only to who has accepted the competition's rules (403): do so at "
                f"{COMPETITION}/rules",
                404: f"Kaggle answers 404, not found, when asked for {what}: see {COMPETITION}/data",
            }
            if status in refusals and not response.history:  # not of the store that Kaggle redirects to
                return refusals[status], False
            sentence = f"Kaggle answers {status} when asked for {what}; https://status.kaggle.com may tell why."
            return sentence, status in (408, 416, 429) or status >= 500 or bool(response.history)
        if isinstance(error, requests.exceptions.ProxyError):
            return f"The proxy in HTTPS_PROXY or HTTP_PROXY doesn't let {what} through: mend or unset it.", True
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):  # Kaggle's are right
            return "HTTPS_PROXY or HTTP_PROXY is no address of a proxy: mend or unset it.", False
        if not isinstance(error, requests.RequestException | ValueError):
            if error.errno:
                raise error  # of the system, not of requests
            return "REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names no file of certificates: mend or unset it.", False
        if isinstance(error, requests.exceptions.SSLError):
            return (
                f"Who answers for Kaggle when asked for {what} has a certificate that isn't trusted. Where that is "
                "your own proxy, name its certificate in REQUESTS_CA_BUNDLE."
            ), False
        if isinstance(error, requests.Timeout) or "timed out" in str(error):
            return f"The connection to Kaggle stalled at {what}.", True
        if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            return (
                f"The connection to Kaggle broke, or there is none, at {what}. Without a network, copy the zips of "
                f"{COMPETITION}/data by hand."
            ), True
        return f"What answers for Kaggle when asked for {what} isn't Kaggle: does this network want a login?", True


def _of_kaggle(call: Callable[..., T], *arguments: object) -> T:
    """What a call of the client returns. Raises ValueError where the answer isn't one that it can read."""
    try:
        return call(*arguments)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError("no answer of Kaggle's") from error


def _asked_to_wait(error: Exception) -> float:
    """The seconds that a server asks to be left alone for, in reason."""
    with suppress(Exception):  # no answer, no such header, or no sense in it
        return min(Retry().get_retry_after(error.response) or 0, MAX_BACKOFF)
    return 0


def _append(response: requests.Response, part: Path, have: int, size: int) -> None:
    """Write what comes behind the `have` bytes of `part`, which is to have `size` in the end."""
    units = dict(unit="B", unit_scale=True, unit_divisor=1024)
    bar = Progress(desc=part.stem, total=size, initial=have, **units)
    with io.BufferedWriter(File(part, mode="a")) as file, bar:
        for chunk in response.iter_content(CHUNK):
            have += len(chunk)
            if have > size:
                break
            file.write(chunk)
            bar.update(len(chunk))
    if have != size:
        raise requests.ConnectionError("it has another length than it said")


def _version(response: requests.Response) -> str | None:
    """What If-Range takes: a strong ETag, else the time of the last change."""
    tag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if tag.startswith("W/") else tag


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_version(part: Path) -> dict:
    """version and size of the file that `part` is the beginning of; nothing where that isn't known."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        known = json.loads(_version_file(part).read_text())
        version, size = known["version"], known["size"]
        if version.isascii() and version.isprintable() and isinstance(size, int):
            return known
    return {}


def discard_partial(part: Path) -> None:
    """Remove a part, and before it what would let it pass for the beginning of a file."""
    for path in (_version_file(part), part):
        with write_errors(path):
            path.unlink(missing_ok=True)


def leftovers(folder: Path, name: str) -> list[Path]:
    """What a process that was killed may have left of fetching and unpacking the zip of that name."""
    part = part_of(folder, name)
    return [path for path in (part, _version_file(part), folder / f"{name}.part") if path.exists()]


def is_there(path: Path) -> bool:
    """Whether a file such as metadata.csv, or a folder such as train with something in it, stands at its place."""
    if path.suffix:
        return path.is_file()
    return path.is_dir() and any(not inside.name.startswith(".") for inside in path.iterdir())


def find_zip(folder: Path, name: str) -> Path | None:
    path = folder / f"{name}.zip"
    return path if path.is_file() else None


def part_of(folder: Path, name: str) -> Path:
    """Where a zip grows while it is fetched."""
    return folder / f"{name}.zip.part"


def download(folder: Path, names: Sequence[str]) -> None:
    """Bring each of `names`, such as train_hq or metadata.csv, into `folder`, out of its zip, which then is removed.

    A zip that isn't there is fetched from Kaggle. Raises UserError where that, the disk or a zip doesn't allow it.
    """
    for name in names:
        if is_there(folder / name):  # the process was ended between the last two steps
            discard_partial(part_of(folder, name))
            shutil.rmtree(folder / f"{name}.part", ignore_errors=True)
    names = [name for name in names if not is_there(folder / name)]
    for name in names:
        path = folder / name
        empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        require(empty or not os.path.lexists(path), f"{path} is in the way, and holds no photos: remove it.")
    fetched = [name for name in names if find_zip(folder, name) is None]
    if fetched:
        kaggle = Kaggle()
        sizes = kaggle.sizes()
        gone = [f"{name}.zip" for name in fetched if f"{name}.zip" not in sizes]
        require(not gone, f"Kaggle has no {' and no '.join(gone)} any more: see {COMPETITION}/data")
        _require_space_for_all(folder, {name: sizes[f"{name}.zip"] for name in fetched})
    for name in names:
        if name not in fetched:
            unpack(find_zip(folder, name), folder / name)
            continue
        part = part_of(folder, name)
        print(f"fetching {name}.zip ({format_bytes(sizes[f'{name}.zip'])}) of {COMPETITION}")
        kaggle.fetch(f"{name}.zip", part, sizes[f"{name}.zip"])
        try:
            unpack(part, folder / name, COUNTS.get(name))
        except RefusedError:
            discard_partial(part)
            raise
        discard_partial(part)


def _require_space_for_all(folder: Path, sizes: dict[str, int]) -> None:
    """sizes: of each zip, in the order in which one after the other is fetched, unpacked and removed."""
    unpacked = most = 0
    for name, size in sizes.items():
        part = part_of(folder, name)
        unpacked += round(size * GROWTH.get(name, GROWTH_OF_PHOTOS))
        most = max(most, unpacked + size - (part.stat().st_size if part.exists() else 0))
    require_space(folder, most, f"to fetch and unpack {', '.join(f'{name}.zip' for name in sizes)}")
