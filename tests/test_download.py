"""Downloads from Kaggle, with a server on loopback in place of Kaggle."""

import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from base64 import b64encode
from collections import Counter
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from kagglesdk.kaggle_env import get_endpoint, get_env

from data import download, fetcher
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout
from data.unpack import RefusedError, unpack
from processes import Program, ended, fork, in_folder
from runtime import files
from runtime.errors import UserError
from test_predictions_saver import rows_of
from tiny import SMALL

SECRET = "a-secret-of-the-user"
STORE = "http://store.test/"  # Kaggle redirects a download to a signed address on another host
NOISE = random.Random(0).randbytes(3 * 2**20)
BASIC = f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}"
API = "http://localhost/api/v1/competitions.CompetitionApiService/"


class Server(ThreadingHTTPServer):
    """Implements the API methods that a download needs, and the file store that they redirect to.

    All http and https requests reach it as their proxy, so no request of a test can leave this machine.
    files: name -> bytes. sent: name -> number of bytes sent. seen: (HTTP method, URL, headers) of every request.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.sent, self.seen = files, Counter(), []
        self.answers = []  # (status, headers) to send instead, one per request; the last one is repeated
        self.store_answers = []  # statuses, one per request
        self.slow = {}  # name -> seconds before the file is sent, once
        self.cut = {}  # name -> fraction of the file after which the next response stalls and disconnects
        self.stalls, self.version = 0, {}  # seconds; name -> ETag
        self.reached = threading.Event()  # set at the cut

    @property
    def environment(self) -> dict[str, str]:
        proxy = "http://{}:{}".format(*self.server_address)
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "KAGGLE_API_TOKEN": "",
            "KAGGLE_USERNAME": "user", "KAGGLE_KEY": SECRET, "NO_PROXY": "", "no_proxy": "",
        }  # fmt: skip

    def handle_error(self, request, client_address):
        pass  # raised when a client is killed


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        self.server.seen.append(("CONNECT", self.path, {}))
        self.answer(502)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(("POST", self.path, dict(self.headers)))
        if self.path.endswith("/IntrospectToken"):
            answer = json.dumps({"active": asked["token"] == SECRET, "username": "user"}).encode()
            return self.answer(200, {"Content-Type": "application/json"}, answer)
        if self.server.answers:
            status, headers = self.server.answers[0]
            if len(self.server.answers) > 1:
                self.server.answers.pop(0)
            if status != 200:
                return self.answer(status, headers)
        if asked["competitionName"] != "carvana-image-masking-challenge":
            return self.answer(404)
        if self.path == API + "DownloadDataFile" and asked["fileName"] in self.server.files:
            return self.answer(302, {"Location": f"{STORE}{asked['fileName']}?signature={SECRET}-of-the-store"})
        return self.answer(404)

    def do_GET(self):
        server, name = self.server, self.path.removeprefix(STORE).partition("?")[0]
        server.seen.append(("GET", self.path, dict(self.headers)))
        if server.store_answers and (refused := server.store_answers.pop(0)) != 200:
            return self.answer(refused)
        data, version = server.files[name], server.version.get(name, '"1"')
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.headers["If-Range"] == version:
            start, status = int(asked[1]), 206
        end = round(server.cut.pop(name) * len(data)) if name in server.cut else len(data)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", version)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if name in server.slow:
            time.sleep(server.slow.pop(name))
        self.wfile.write(data[start:end])
        server.sent[name] += max(0, end - start)
        if end < len(data):
            server.reached.set()
            time.sleep(server.stalls)
            self.close_connection = True

    def answer(self, status, headers=None, body=b""):
        self.send_response(status)
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def kaggles(drawn):
    """The competition's files, with drawn cars instead of its own, and noise to make a zip of a few MB."""
    folders = {"train": "train", "train_hq": "train", "train_masks": "train_masks", "test": "test", "test_hq": "test"}
    files = {}
    for name, source in folders.items():
        members = {f"{name}/{path.name}": path.read_bytes() for path in sorted((drawn / source).iterdir())}
        padding = NOISE if name == "train" else b""
        files[f"{name}.zip"] = zipped({f"{name}/.DS_Store": padding, f"__MACOSX/{name}/._a": b"", **members})
    return files


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", (0.01, 0.02))
    monkeypatch.setattr(os, "sync", lambda: None)  # which may take seconds; no test cuts the power


@pytest.fixture
def server(kaggles, monkeypatch):
    server = Server(dict(kaggles))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    assert get_endpoint(get_env()) == "http://localhost" and server.server_address[0] == "127.0.0.1"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
    assert not [address for method, address, _ in server.seen if method == "CONNECT"], "a test left this machine"


def fetch(folder, test_images=False, **options):
    DatasetFetcher(CarvanaLayout(folder, **options)).download_dataset(test_images)


def refusal(*arguments, **options):
    with pytest.raises(UserError) as error:
        fetch(*arguments, **options)
    assert SECRET not in str(error.value) and STORE not in str(error.value)
    return str(error.value)


def expected_tree(kaggles, *names):
    tree = {".lock": b""}
    for name in names:
        with zipfile.ZipFile(io.BytesIO(kaggles[f"{name}.zip"])) as archive:
            tree |= {each: archive.read(each) for each in archive.namelist() if "/." not in each}
    return tree


TRAINING = ("train_masks", "train")
PREDICTION = ("test",)


def test_each_file_is_downloaded_once(server, kaggles, tmp_path, capsys):
    folder = tmp_path / "input"
    fetch(folder, test_images=True)
    assert read_tree(folder) == expected_tree(kaggles, *TRAINING, *PREDICTION)
    assert server.sent == {f"{name}.zip": len(kaggles[f"{name}.zip"]) for name in TRAINING + PREDICTION}
    assert len(DatasetFetcher(CarvanaLayout(folder)).get_train_files()[0]) == 48
    requests = len(server.seen)
    fetch(folder, test_images=True)
    assert len(server.seen) == requests
    shutil.rmtree(folder / "train_masks")
    fetch(folder, test_images=True)
    assert read_tree(folder) == expected_tree(kaggles, *TRAINING, *PREDICTION)
    assert server.sent["train.zip"] == len(kaggles["train.zip"])
    assert server.sent["train_masks.zip"] == 2 * len(kaggles["train_masks.zip"])
    assert SECRET not in capsys.readouterr().out


def test_credentials_are_sent_to_kaggle_and_nowhere_else(server, tmp_path):
    fetch(tmp_path)
    for method, address, headers in server.seen:
        assert headers.get("Authorization") == {"POST": BASIC, "GET": None}[method]
        assert address.startswith({"POST": API, "GET": STORE}[method])
        assert SECRET not in " ".join(headers.values())


def test_test_images_and_high_quality_images_are_downloaded_on_request(server, kaggles, tmp_path):
    fetch(tmp_path / "a")
    assert read_tree(tmp_path / "a") == expected_tree(kaggles, *TRAINING)
    fetch(tmp_path / "b", test_images=True, hq_files=True)
    high = ("train_masks", "train_hq", "test_hq")
    assert read_tree(tmp_path / "b") == expected_tree(kaggles, *high)
    shutil.rmtree(tmp_path / "b/test_hq")
    fetch(tmp_path / "b", test_images=True)  # in the quality of the training images
    assert read_tree(tmp_path / "b") == expected_tree(kaggles, *high)


# Interrupted downloads


MIB = 2**20  # bytes that the client writes at once


def first_bytes(server, name):
    """The first byte that each request for a file asks for."""
    asked = [headers.get("Range", "bytes=0-") for _, address, headers in server.seen if f"{STORE}{name}?" in address]
    return [int(each[6:-1]) for each in asked]


@pytest.mark.parametrize("stalls", [0, 1])
def test_a_broken_or_stalled_connection_is_resumed(server, kaggles, tmp_path, monkeypatch, capsys, stalls):
    timeouts, send = set(), requests.adapters.HTTPAdapter.send

    def send_impatiently(self, *arguments, timeout, **options):
        timeouts.add(timeout)
        return send(self, *arguments, timeout=0.3, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_impatiently)
    server.cut["train.zip"], server.stalls = 0.7, stalls
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    assert max(first_bytes(server, "train.zip")) == 2 * MIB and timeouts == {download.TIMEOUT}
    expected = r"^Warning: The connection to Kaggle failed for train\.zip \(\w+\)\. .* Retrying in 0\.01 s\.$"
    assert re.search(expected, capsys.readouterr().out, re.M)


def test_a_log_shows_the_progress(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.Progress.INTERVAL", 0)
    fetch(tmp_path)
    assert re.search(r"^train\.zip: 2\.00M of 3\.\d+M in ", capsys.readouterr().out, re.M)


def test_retries_end_if_the_connection_always_breaks(server, tmp_path):
    server.files["train.zip"] = server.files["train.zip"][:100]
    server.cut = Cuts({"train.zip": itertools.repeat(0.5)})
    assert "The connection to Kaggle failed for train.zip" in refusal(tmp_path)
    api_requests = [address for method, address, _ in server.seen if method == "POST"]
    assert len(api_requests) == 1 + 1 + len(download.BACKOFF)  # the first is for train_masks.zip


class Cuts(dict):
    """name -> an iterator over the fractions of the file after which its responses are cut."""

    def pop(self, name):
        return next(self[name])


def test_retries_start_again_after_progress(server, kaggles, tmp_path):
    """Control of the test above: three connections break, and there are two retries."""
    server.cut = Cuts({"train.zip": iter((0.4, 1, 0.7, 1, 0.7, 1, 1))})  # an attempt to resume makes two requests
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    assert [first for first in first_bytes(server, "train.zip") if first] == [MIB, 2 * MIB, 2 * MIB]


def in_a_process(action, *arguments):
    """Returns a new process that runs action(*arguments)."""
    return fork(run_action, action, *arguments)


def run_action(action, *arguments):
    download.BACKOFF, os.sync = (), lambda: None
    try:
        action(*arguments)
    except UserError as error:
        sys.exit(str(error))


@pytest.mark.seconds
def test_another_process_resumes_the_download(server, kaggles, tmp_path):
    server.cut["train.zip"] = 0.4
    assert ended(in_a_process(fetch, tmp_path)) == 1
    assert not (tmp_path / "train").exists() and (tmp_path / "train.zip.part").exists()
    assert ended(in_a_process(fetch, tmp_path)) == 0
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    assert max(first_bytes(server, "train.zip")) == MIB
    assert server.sent["train_masks.zip"] == len(kaggles["train_masks.zip"])


def test_a_changed_file_is_downloaded_from_the_start(server, kaggles, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", ())
    server.cut["train.zip"] = 0.4
    refusal(tmp_path)
    assert (tmp_path / "train.zip.part").stat().st_size == MIB  # control
    changed = {**kaggles, "train.zip": kaggles["train.zip"].replace(NOISE, NOISE[::-1])}
    server.files, server.version["train.zip"] = changed, '"2"'
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(changed, *TRAINING)
    assert max(first_bytes(server, "train.zip")) == 0


def test_a_zip_that_was_not_unpacked_is_not_downloaded_again(server, kaggles, tmp_path):
    (tmp_path / "train.zip.part").write_bytes(kaggles["train.zip"])
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING) and set(server.sent) == {"train_masks.zip"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "Kaggle answered 401 to the request for train_masks.zip. Create a new token at "
              "https://www.kaggle.com/settings/api."),
        (403, "Accept the competition's rules at https://www.kaggle.com/c/carvana-image-masking-challenge/rules."),
        (404, "Kaggle answered 404 to the request for train_masks.zip. See https://status.kaggle.com."),
    ],
)  # fmt: skip
def test_a_permanent_error_is_not_retried_and_names_a_remedy(server, tmp_path, status, expected):
    server.answers = [(status, {})]
    assert expected in refusal(tmp_path)
    assert len(server.seen) == 1


def test_temporary_errors_are_retried(server, kaggles, tmp_path, monkeypatch, capsys):
    """Also signed URLs that have expired, before the first byte and within a file."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(download, "BACKOFF", (1, 2, 3, 4))
    server.answers = [(429, {}), (500, {}), (200, {})]
    server.store_answers = [503, 403, 200, 200, 200, 403]
    server.cut["train.zip"] = 0.4
    fetch(tmp_path)
    assert [seconds for seconds in slept if seconds] == [1, 2, 3, 4, 1, 2]  # the server sleeps 0 seconds
    assert SECRET not in "".join(capsys.readouterr())
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)


def test_retries_end_if_the_server_always_fails(server, tmp_path, capsys):
    server.answers = [(500, {})]
    expected = "Kaggle answered 500 to the request for train_masks.zip. See https://status.kaggle.com."
    assert refusal(tmp_path) == expected
    assert len(server.seen) == 1 + len(download.BACKOFF)
    warnings = [f"Warning: {expected} Retrying in {seconds} s.\n" for seconds in (0.01, 0.02)]
    assert capsys.readouterr().out.endswith("".join(warnings))


def test_a_login_page_is_not_a_zip(server, tmp_path):
    server.files["train_masks.zip"] = b"<html>"
    assert "train_masks.zip.part is damaged or not a zip ('File is not a zip file')" in refusal(tmp_path)
    assert not list(tmp_path.glob("*.part*"))


def test_a_missing_network_or_proxy_is_named(server, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:{closed.getsockname()[1]}")
    assert "failed for train_masks.zip (ProxyError). Check the network, HTTPS_PROXY, HTTP_PROXY" in refusal(tmp_path)
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    assert "The connection to Kaggle failed for the sign-in (ProxyError). Check the network" in refusal(tmp_path)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://", "nonsense://"])
def test_an_invalid_proxy_is_not_retried(server, tmp_path, monkeypatch, capsys, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    assert "(Invalid" in refusal(tmp_path) and "Retrying" not in capsys.readouterr().out


def test_a_missing_certificate_file_is_not_retried(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such.pem")
    monkeypatch.setattr("kagglesdk.kaggle_http_client.get_endpoint", lambda _: "https://kaggle.test")
    assert "HTTP_PROXY, REQUESTS_CA_BUNDLE and" in refusal(tmp_path) and "Retrying" not in capsys.readouterr().out


# Zips


@pytest.mark.parametrize("damage", ["cut", "a bit"])
def test_a_damaged_zip_is_refused_and_downloaded_again(server, kaggles, tmp_path, damage):
    data = bytearray(kaggles["train.zip"])
    data[data.rindex(b"\xff\xd9") - 100] ^= 1  # in the last image
    server.files["train.zip"] = bytes(data) if damage == "a bit" else kaggles["train.zip"][:-1000]
    assert "train.zip.part is damaged or not a zip (" in refusal(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, "train_masks")
    server.files["train.zip"] = kaggles["train.zip"]
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)


@pytest.mark.parametrize(
    "name", ["../b_01.jpg", "a/../../b_01.jpg", "/b_01.jpg", "..\\b_01.jpg", "C:b_01.jpg", "\\b_01.jpg"]
)
def test_a_zip_cannot_write_outside_of_its_folder(tmp_path, name):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "train.zip").write_bytes(zipped({"train/a_01.jpg": b"a", name: b"b"}))
    unpack(folder / "train.zip", folder / "train")
    assert read_tree(tmp_path) == {"input/train/a_01.jpg": b"a", "input/train/b_01.jpg": b"b"}


def test_a_zip_with_two_files_of_a_name_is_refused(tmp_path):
    (tmp_path / "train.zip").write_bytes(zipped({"train/a_01.jpg": b"a", "other/A_01.JPG": b"b"}))
    with pytest.raises(RefusedError, match=r"train\.zip contains two files of the same name\. Download it again\."):
        unpack(tmp_path / "train.zip", tmp_path / "train")
    assert [path.name for path in tmp_path.iterdir()] == ["train.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_more_is_unpacked_than_a_zip_declares(tmp_path, method):
    data = bytearray(zipped({"train/a_01.jpg": bytes(10**5)}, method))
    directory = data.rindex(b"PK\1\2")
    assert int.from_bytes(data[directory + 24 : directory + 28], "little") == 10**5
    data[directory + 24 : directory + 28] = (10).to_bytes(4, "little")
    data[directory + 16 : directory + 20] = zlib.crc32(bytes(10)).to_bytes(4, "little")
    (tmp_path / "train.zip").write_bytes(data)
    unpack(tmp_path / "train.zip", tmp_path / "train")
    assert (tmp_path / "train/a_01.jpg").stat().st_size == 10


def test_a_zip_too_large_for_the_disk_is_refused_before_it_is_unpacked(small_disk):
    folder, _ = small_disk
    (folder / "train.zip").write_bytes(zipped({"train/a_01.jpg": bytes(2**20)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match=r"free, but unpacking .*train.zip takes 1.00MB\. Free \d+kB\."):
        unpack(folder / "train.zip", folder / "train")
    assert [path.name for path in folder.iterdir()] == ["train.zip"]


def test_zips_and_folders_copied_by_hand_need_no_credentials(kaggles, drawn, tmp_path):
    """Zips with and without folders, made on Windows or macOS, and a zip that is not the competition's."""
    (tmp_path / "train_masks.zip").write_bytes(kaggles["train_masks.zip"])
    images = {path.name: path.read_bytes() for path in (drawn / "train").iterdir()}
    (tmp_path / "train_hq.zip").write_bytes(zipped(images))
    (tmp_path / "test.zip").write_bytes(zipped({rf"test\{name}": data for name, data in list(images.items())[:5]}))
    (tmp_path / "notes.zip").write_bytes(b"of the user")
    fetch(tmp_path, test_images=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "train_masks", "train_hq", "test", "notes.zip", ".lock",
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in (tmp_path / "train_hq").iterdir()} == images
    assert len(list((tmp_path / "test").iterdir())) == 5
    assert len(DatasetFetcher(CarvanaLayout(tmp_path)).get_train_files()[0]) == 48


def test_a_damaged_zip_copied_by_hand_is_kept_and_named(tmp_path, kaggles):
    (tmp_path / "train.zip").write_bytes(kaggles["train.zip"][:5000])
    (tmp_path / "train_masks.zip").write_bytes(kaggles["train_masks.zip"])
    with pytest.raises(UserError, match=r"train\.zip is damaged or not a zip \(.*\)\. Download it again"):
        fetch(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"train.zip", "train_masks", ".lock"}


# The disk


def test_a_disk_that_is_too_small_is_named_before_any_download(server, small_disk):
    folder, _ = small_disk
    (folder / "train_masks").mkdir()
    (folder / "train_masks/a_01_mask.gif").touch()
    sentence = refusal(folder)
    assert re.search(
        r"disk has 2\d\dkB free, but downloading and unpacking train\.zip takes \d\.\d\dMB\. "
        r"Free \d\.\d\dMB\.",
        sentence,
    )
    assert {path.name for path in folder.iterdir()} == {"train_masks", ".lock"}


@pytest.mark.parametrize("full_at", ["train_masks", "train.zip.part"])
def test_a_disk_that_fills_up_keeps_the_partial_download(server, kaggles, small_disk, full_at, monkeypatch):
    """As if another program filled it after the check."""
    folder, _ = small_disk
    monkeypatch.setattr(download, "require_space", lambda *_: None)
    names = TRAINING if full_at == "train_masks" else ("train",)
    if full_at != "train_masks":
        (folder / "train_masks").mkdir()
        (folder / "train_masks/a_01_mask.gif").touch()
    sentence = refusal(folder)
    assert re.search(rf"{full_at}.*\(No space left on device\)", sentence)
    assert not list(folder.glob("*/*.jpg")) and not (folder / "train").exists()
    subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
    fetch(folder)
    assert read_tree(folder).items() >= expected_tree(kaggles, *names).items()
    assert server.sent["train_masks.zip"] == len(kaggles["train_masks.zip"]) * (full_at == "train_masks")
    assert full_at == "train_masks" or max(first_bytes(server, "train.zip")) > 0


# Kills, interrupts, two processes


def fetch_and_die(folder, moment, log=None, naive=False):
    """Kill this process at the `moment`th change to the folder while it downloads. log: the file to list them in."""
    seen = []

    def hook(event, arguments):
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        changes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if changes and str(arguments[0]).startswith(f"{folder}/"):
            seen.append(f"{event} {Path(arguments[0]).relative_to(folder)}")
            if len(seen) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    if naive:
        download.unpack = unpack_naively
    sys.addaudithook(hook)
    fetch(folder)
    if log:
        log.write_text("\n".join(seen))


def unpack_naively(archive, target):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(target.parent, [name for name in opened.namelist() if "/." not in name])
    archive.unlink()


def half_folders(folder, kaggles):
    """The names that exist but are not complete."""
    tree, whole = read_tree(folder), expected_tree(kaggles, *TRAINING)
    return [
        name for name in TRAINING
        if (folder / name).exists()
        and any(tree.get(path) != data for path, data in whole.items() if path.split("/")[0] == name)
    ]  # fmt: skip


@pytest.mark.seconds
def test_a_kill_leaves_no_incomplete_folder_and_the_next_start_resumes(server, kaggles, tmp_path):
    whole = expected_tree(kaggles, *TRAINING)
    assert ended(in_a_process(fetch_and_die, tmp_path / "straight", 0, tmp_path / "log")) == 0
    changes = (tmp_path / "log").read_text().splitlines()
    assert read_tree(tmp_path / "straight") == whole and len(changes) > 128
    between = [moment for moment, change in enumerate(changes, 1) if not re.search(r"\.(gif|jpg)$", change)]
    unpacking = [moment for moment in range(1, len(changes) + 1) if moment not in between]
    moments = [*random.Random(1).sample(between[:-2], 6), *random.Random(1).sample(unpacking, 2), *between[-2:]]
    print([changes[moment - 1] for moment in moments])
    for moment in moments:
        folder = tmp_path / str(moment)
        assert ended(in_a_process(fetch_and_die, folder, moment)) == -signal.SIGKILL
        assert not half_folders(folder, kaggles), changes[moment - 1]
        fetch(folder)
        assert read_tree(folder) == whole and not list(folder.glob("*.part")), changes[moment - 1]


@pytest.mark.seconds
def test_a_kill_can_leave_an_incomplete_folder(server, kaggles, tmp_path):
    """Control of the test above: zips unpacked in their final place."""
    (tmp_path / "input").mkdir()
    assert ended(in_a_process(fetch_and_die, tmp_path / "input", 40, None, True)) == -signal.SIGKILL
    assert half_folders(tmp_path / "input", kaggles)


@pytest.mark.seconds
def test_a_kill_while_downloading_loses_at_most_a_chunk(server, kaggles, tmp_path):
    server.cut["train.zip"], server.stalls = 0.7, 2
    process = in_a_process(fetch, tmp_path)
    assert server.reached.wait(30)
    part = tmp_path / "train.zip.part"
    while not part.exists() or part.stat().st_size < 2 * MIB:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    assert max(first_bytes(server, "train.zip")) == 2 * MIB


def fetch_unlocked(folder):
    fetcher.lock = lambda folder, wait: nullcontext()
    fetch(folder)


@pytest.mark.seconds
@pytest.mark.parametrize("action", [fetch, fetch_unlocked])
def test_two_processes_download_once(server, kaggles, tmp_path, action):
    """Control: without the lock, they download twice or disturb each other."""
    server.slow["train.zip"] = 1  # long enough for the second process to start
    processes = [in_a_process(action, tmp_path) for _ in range(2)]
    codes = [ended(process) for process in processes]
    once = codes == [0, 0] and server.sent == {f"{name}.zip": len(kaggles[f"{name}.zip"]) for name in TRAINING}
    assert once == (action is fetch)
    assert action is fetch_unlocked or read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)


def hold(folder):
    with files.lock(folder):
        (folder / "held").touch()
        while not (folder / "release").exists():
            time.sleep(0.005)


@pytest.mark.seconds
def test_waiting_for_a_lock_prints_a_sentence(tmp_path, monkeypatch):
    process = in_a_process(hold, tmp_path)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    with pytest.raises(UserError, match="in use by another process"):
        files.lock(tmp_path)
    printed = []

    def print_and_release(sentence):
        printed.append(sentence)
        (tmp_path / "release").touch()

    monkeypatch.setattr(files, "print", print_and_release, raising=False)
    with files.lock(tmp_path, wait=True):
        assert ended(process) == 0
    assert printed == [f"Another process is writing to {tmp_path}. Waiting for it."]


MAIN = """
import runpy, sys
from data import download
from nn import unet
from tiny import SMALL_NETS
unet.NETS.update(SMALL_NETS)
download.TEST_COUNT, download.BACKOFF = 16, ()
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


def start_main(folder, *arguments):
    """Start main.py for a competition as small as the server's."""
    script = folder / "small_competition.py"
    script.write_text(MAIN)
    return Program(script, *in_folder(folder, "--input-dir", folder / "input", *SMALL, *arguments))


@pytest.mark.seconds
def test_ctrl_c_keeps_the_partial_download_and_the_same_command_completes(server, kaggles, tmp_path, monkeypatch):
    monkeypatch.setenv("VERBOSE", "1")  # with which the client alone prints secrets
    server.cut["train.zip"], server.stalls = 0.4, 5
    run = start_main(tmp_path, "--epochs", "1", "--workers", "0")
    assert server.reached.wait(60)
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGINT)
    printed = run.ended()
    assert run.code == 128 + signal.SIGINT and "Traceback" not in printed
    kept = "The download so far is kept. Run the same command again to resume it."
    assert printed.splitlines()[-1].endswith(kept)
    assert first_bytes(server, "train.zip") == [0]

    server.stalls = 0
    run = start_main(tmp_path, "--epochs", "1", "--workers", "0")
    printed += run.ended()
    assert run.code == 0, printed
    assert max(first_bytes(server, "train.zip")) > 0
    assert read_tree(tmp_path / "input") == expected_tree(kaggles, *TRAINING, *PREDICTION)
    command = "kaggle competitions submit -c carvana-image-masking-challenge -f {} -m U-Net"
    submission = tmp_path / "output/submit.csv.gz"
    assert printed.splitlines()[-1] == f"upload it   {command.format(submission)}"
    names = [path.name for path in sorted((tmp_path / "input/test").iterdir())]
    assert [name for name, _ in rows_of(submission)] == ["img", *names]
    assert SECRET not in printed and STORE not in printed
    assert not any(SECRET.encode() in data for data in read_tree(tmp_path).values())


# Credentials


@pytest.mark.parametrize(
    ("found", "header"),
    [
        ({"KAGGLE_API_TOKEN": SECRET, "KAGGLE_USERNAME": "a", "KAGGLE_KEY": "1"}, f"Bearer {SECRET}"),
        ({"KAGGLE_USERNAME": "user", "KAGGLE_KEY": SECRET}, BASIC),
    ],
)
def test_credentials_sign_in(server, tmp_path, monkeypatch, capsys, found, header):
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    fetch(tmp_path)
    assert {headers.get("Authorization") for _, _, headers in server.seen} == {header, None}
    assert capsys.readouterr().out.startswith("Downloading train_masks.zip from http")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, "Three options:"),
        ({"KAGGLE_USERNAME": "a"}, "Three options:"),
        ({"KAGGLE_KEY": SECRET}, "Three options:"),
        ({"KAGGLE_API_TOKEN": f"{SECRET}-that-expired"}, "Three options:"),
        ({"KAGGLE_API_TOKEN": f"{SECRET}\nand more"}, "(ValueError). Check the network, HTTPS_PROXY, HTTP_PROXY, "
         "REQUESTS_CA_BUNDLE and your Kaggle credentials."),
        ({"KAGGLE_API_TOKEN": 30 * SECRET}, "The connection to Kaggle failed for the sign-in (OSError)."),
        ({"KAGGLE_USERNAME": "a", "KAGGLE_KEY": f"{SECRET}\u2026"}, "failed for train_masks.zip (UnicodeEncodeError)"),
        ({"FILE": "[]"}, "The connection to Kaggle failed for the sign-in (AttributeError)."),
    ],
)  # fmt: skip
def test_invalid_credentials_are_refused_and_never_printed(server, monkeypatch, tmp_path, capfd, found, expected):
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    for name, value in found.items():
        if name == "FILE":
            monkeypatch.setenv("HOME", str(tmp_path))
            (tmp_path / ".kaggle").mkdir()
            (tmp_path / ".kaggle/credentials.json").write_text(value)
        else:
            monkeypatch.setenv(name, value)
    assert expected in refusal(tmp_path / "input")
    assert "Authentication required" not in (printed := "".join(capfd.readouterr())) and SECRET not in printed


def test_without_credentials_and_images_the_help_text_is_shown(tmp_path):
    sentence = refusal(tmp_path, test_images=True)
    assert "There is no train/ or train_hq/ and no train_masks/ and no test/ or test_hq/ in" in sentence
    assert all(way in sentence for way in ("/rules", "KAGGLE_API_TOKEN", "--input-dir", "--dataset sample"))
    assert list(tmp_path.iterdir()) == []


def test_other_images_in_the_layout_of_kaggle_need_no_download(drawn, server, tmp_path):
    """Nor a writable folder."""
    folder = shutil.copytree(drawn, tmp_path / "input")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555)
    before = read_tree(folder)
    fetch(folder, test_images=True)
    assert not server.seen and read_tree(folder) == before
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    shutil.rmtree(folder / "test")
    fetch(folder)
    assert not server.seen
    fetch(folder, test_images=True)  # control
    assert set(server.sent) == {"test.zip"}
