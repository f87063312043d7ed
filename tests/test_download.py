"""Fetching from Kaggle: its real client, against a server of the test's own on loopback."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from base64 import b64encode
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kagglesdk.kaggle_env import get_endpoint, get_env

import helpers
from conftest import ROOT
from data import download
from data.fetcher import DatasetFetcher
from helpers import UserError

SECRET = "a-secret-of-the-user"
STORE = "http://store.test/"  # Kaggle redirects a download to a signed address on another host
API = "http://localhost/api/v1/competitions.CompetitionApiService/"


class Server(ThreadingHTTPServer):
    """Speaks the two endpoints that the client calls for a download, and is the store that it redirects to.

    It is reached as the proxy of all that is http or https, so that nothing of a test can leave this machine.
    files: name -> bytes. sent: name -> the bytes that went out. seen: (method, address, headers) of every request.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.listed, self.sent, self.seen = files, {}, Counter(), []
        self.answers = []  # statuses, with headers, to give instead, one a request, the last of them for ever
        self.store_answers = []
        self.cut = {}  # name -> share of the file behind which the next answer hangs up; or stalls
        self.stalls, self.honest, self.version = False, True, {}
        self.reached = threading.Event()  # it has come to the cut

    @property
    def environment(self) -> dict[str, str]:
        proxy = "http://{}:{}".format(*self.server_address)
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "KAGGLE_API_TOKEN": "",
            "KAGGLE_USERNAME": "user", "KAGGLE_KEY": SECRET, "NO_PROXY": "", "no_proxy": "",
        }  # fmt: skip

    def handle_error(self, request, client_address):
        pass  # of a client that was killed


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_CONNECT(self):  # noqa: N802, the name is http.server's
        self.server.seen.append(("CONNECT", self.path, {}))
        self.answer(502)

    def do_POST(self):  # noqa: N802
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(("POST", self.path, dict(self.headers)))
        if self.server.answers:
            status, headers = self.server.answers[0]
            if len(self.server.answers) > 1:
                self.server.answers.pop(0)
            if status != 200:
                return self.answer(status, headers)
        if asked["competitionName"] != "carvana-image-masking-challenge":
            return self.answer(404)
        if self.path == API + "ListDataFiles":
            return self.list_files(asked.get("pageToken"))
        if self.path == API + "DownloadDataFile" and asked["fileName"] in self.server.files:
            return self.answer(302, {"Location": f"{STORE}{asked['fileName']}?signature={SECRET}-of-the-store"})
        return self.answer(404)

    def list_files(self, page):
        """Two a page."""
        sizes = {name: len(data) for name, data in self.server.files.items()} | self.server.listed
        names = sorted(sizes)
        first = int(page or 0)
        files = [{"ref": name, "name": name, "totalBytes": sizes[name]} for name in names[first : first + 2]]
        body = {"files": files} | ({"nextPageToken": str(first + 2)} if first + 2 < len(names) else {})
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def do_GET(self):  # noqa: N802
        server, name = self.server, self.path.removeprefix(STORE).partition("?")[0]
        server.seen.append(("GET", self.path, dict(self.headers)))
        if server.store_answers:
            return self.answer(server.store_answers.pop(0))
        data, version = server.files[name], server.version.get(name, '"1"')
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and (self.headers["If-Range"] == version or not server.honest):
            start, status = int(asked[1]), 206
        end = round(server.cut.pop(name) * len(data)) if name in server.cut else len(data)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) - start))
        if version:
            self.send_header("ETag", version)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:end])
        server.sent[name] += max(0, end - start)
        if end < len(data):
            server.reached.set()
            if server.stalls:
                time.sleep(3)
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
    """The files of the competition: the drawn cars in place of its own, and noise, which makes a zip of some MB."""
    folders = {"train": "train", "train_hq": "train", "train_masks": "train_masks", "test": "test", "test_hq": "test"}
    files = {}
    for name, source in folders.items():
        members = {f"{name}/{path.name}": path.read_bytes() for path in sorted((drawn / source).iterdir())}
        files[f"{name}.zip"] = zipped({f"{name}/.DS_Store": b"", f"__MACOSX/{name}/._a": b"", **members})
    names = sorted(path.name for path in (drawn / "test").iterdir())
    submission = "img,rle_mask\n" + "".join(f"{name},1 1\n" for name in names)
    for name, text in (("metadata.csv", '"id","year"\n'), ("sample_submission.csv", submission)):
        files[f"{name}.zip"] = zipped({name: text.encode()}, zipfile.ZIP_DEFLATED)
    return files


@pytest.fixture(autouse=True)
def small_competition(monkeypatch):
    monkeypatch.setattr(download, "COUNTS", {"train": 64, "train_hq": 64, "train_masks": 64, "test": 16, "test_hq": 16})
    monkeypatch.setattr(download, "WAITS", (0.01, 0.02))


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
    assert not [address for method, address, _ in server.seen if method == "CONNECT"], "no test leaves this machine"


def fetch(folder, test_photos=False, **options):
    DatasetFetcher(folder, **options).download_dataset(test_photos)


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


TRAINING = ("metadata.csv", "train_masks", "train")
PREDICTION = ("sample_submission.csv", "test")


def test_everything_is_fetched_and_nothing_twice(server, kaggles, tmp_path, capsys):
    folder = tmp_path / "input"
    fetch(folder, test_photos=True)
    assert read_tree(folder) == expected_tree(kaggles, *TRAINING, *PREDICTION)
    assert server.sent == {f"{name}.zip": len(kaggles[f"{name}.zip"]) for name in TRAINING + PREDICTION}
    assert len(DatasetFetcher(folder).get_train_files()[0]) == 48
    requests = len(server.seen)
    fetch(folder, test_photos=True)
    assert len(server.seen) == requests
    shutil.rmtree(folder / "train_masks")
    fetch(folder, test_photos=True)
    assert read_tree(folder) == expected_tree(kaggles, *TRAINING, *PREDICTION)
    assert server.sent["train.zip"] == len(kaggles["train.zip"])
    assert server.sent["train_masks.zip"] == 2 * len(kaggles["train_masks.zip"])
    assert SECRET not in capsys.readouterr().out


def test_the_client_is_signed_in_at_kaggle_and_nowhere_else(server, tmp_path):
    fetch(tmp_path)
    key = f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}"
    for method, address, headers in server.seen:
        assert headers.get("Authorization") == {"POST": key, "GET": None}[method]
        assert address.startswith({"POST": API, "GET": STORE}[method])


def test_photos_to_predict_and_of_high_quality_are_fetched_when_they_are_asked_for(server, kaggles, tmp_path):
    fetch(tmp_path / "a")
    assert read_tree(tmp_path / "a") == expected_tree(kaggles, *TRAINING)
    fetch(tmp_path / "b", test_photos=True, hq_files=True)
    high = ("metadata.csv", "train_masks", "train_hq", "sample_submission.csv", "test_hq")
    assert read_tree(tmp_path / "b") == expected_tree(kaggles, *high)
    shutil.rmtree(tmp_path / "b/test_hq")
    fetch(tmp_path / "b", test_photos=True)  # of the quality of the photos to train on
    assert read_tree(tmp_path / "b") == expected_tree(kaggles, *high)
