"""Fetching from Kaggle: its real client, against a server of the test's own on loopback."""

import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from base64 import b64encode
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import forkserver
from pathlib import Path

import pytest
from kagglesdk.kaggle_env import get_endpoint, get_env

from conftest import ROOT
from data import download, fetcher
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout
from data.unpack import RefusedError, unpack
from runtime import files
from runtime.errors import UserError
from test_main import SMALL, rows_of

SECRET = "a-secret-of-the-user"
STORE = "http://store.test/"  # Kaggle redirects a download to a signed address on another host
NOISE = random.Random(0).randbytes(3 * 2**20)
SMALL_COUNTS = {"train": 64, "train_hq": 64, "train_masks": 64, "test": 16, "test_hq": 16}
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
        self.slow = {}  # name -> seconds before the file is sent, once
        self.cut = {}  # name -> share of the file behind which the next answer hangs up; or stalls
        self.stalls, self.honest, self.version = 0, True, {}  # seconds; whether it looks at If-Range; name -> ETag
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

    def do_CONNECT(self):
        self.server.seen.append(("CONNECT", self.path, {}))
        self.answer(502)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(("POST", self.path, dict(self.headers)))
        if self.path.endswith("/GenerateAccessToken") and asked["refreshToken"] == "refresh":
            token = json.dumps({"token": SECRET, "expiresIn": 3600}).encode()
            return self.answer(200, {"Content-Type": "application/json"}, token)
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

    def do_GET(self):
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
    """The files of the competition: the drawn cars in place of its own, and noise, which makes a zip of some MB."""
    folders = {"train": "train", "train_hq": "train", "train_masks": "train_masks", "test": "test", "test_hq": "test"}
    files = {}
    for name, source in folders.items():
        members = {f"{name}/{path.name}": path.read_bytes() for path in sorted((drawn / source).iterdir())}
        padding = NOISE if name == "train" else b""
        files[f"{name}.zip"] = zipped({f"{name}/.DS_Store": padding, f"__MACOSX/{name}/._a": b"", **members})
    names = sorted(path.name for path in (drawn / "test").iterdir())
    submission = "img,rle_mask\n" + "".join(f"{name},1 1\n" for name in names)
    for name, text in (("metadata.csv", '"id","year"\n'), ("sample_submission.csv", submission)):
        files[f"{name}.zip"] = zipped({name: text.encode()}, zipfile.ZIP_DEFLATED)
    return files


@pytest.fixture(autouse=True)
def small_competition(monkeypatch):
    for name, count in SMALL_COUNTS.items():
        monkeypatch.setitem(download.COUNTS, name, count)
    monkeypatch.setattr(download, "BACKOFF", (0.01, 0.02))


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


TRAINING = ("metadata.csv", "train_masks", "train")
PREDICTION = ("sample_submission.csv", "test")


def test_everything_is_fetched_and_nothing_twice(server, kaggles, tmp_path, capsys):
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


def test_the_client_is_signed_in_at_kaggle_and_nowhere_else(server, tmp_path):
    fetch(tmp_path)
    key = f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}"
    for method, address, headers in server.seen:
        assert headers.get("Authorization") == {"POST": key, "GET": None}[method]
        assert address.startswith({"POST": API, "GET": STORE}[method])
        assert SECRET not in " ".join(headers.values())


def test_photos_to_predict_and_of_high_quality_are_fetched_when_they_are_asked_for(server, kaggles, tmp_path):
    fetch(tmp_path / "a")
    assert read_tree(tmp_path / "a") == expected_tree(kaggles, *TRAINING)
    fetch(tmp_path / "b", test_images=True, hq_files=True)
    high = ("metadata.csv", "train_masks", "train_hq", "sample_submission.csv", "test_hq")
    assert read_tree(tmp_path / "b") == expected_tree(kaggles, *high)
    shutil.rmtree(tmp_path / "b/test_hq")
    fetch(tmp_path / "b", test_images=True)  # of the quality of the photos to train on
    assert read_tree(tmp_path / "b") == expected_tree(kaggles, *high)


# What breaks on the way


def ranges(server, name):
    """The first byte that each request for a file asked for."""
    asked = [headers.get("Range", "bytes=0-") for _, address, headers in server.seen if f"{STORE}{name}?" in address]
    return [int(each[6:-1]) for each in asked]


def test_a_hang_up_is_taken_up_where_it_broke(server, kaggles, tmp_path, capsys):
    server.cut["train.zip"] = 0.4
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    size = len(kaggles["train.zip"])
    first, second = ranges(server, "train.zip")
    assert first == 0 and 0.4 * size - download.CHUNK <= second <= 0.4 * size
    assert server.sent["train.zip"] == round(0.4 * size) + size - second
    assert "The connection to Kaggle broke, or there is none, at train.zip. " in capsys.readouterr().out


def test_a_stalled_connection_is_given_up_and_taken_up(server, kaggles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)
    server.cut["train.zip"], server.stalls = 0.4, 1
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING) and ranges(server, "train.zip")[1] > 0
    assert "The connection to Kaggle stalled at train.zip. Trying again in 0.01 s." in capsys.readouterr().out


def test_a_server_that_hangs_up_for_ever_is_left(server, tmp_path):
    server.files["train.zip"] = server.files["train.zip"][:100]  # which are in no chunk when it hangs up
    server.cut = Forever({"train.zip": 0.5})
    assert "The connection to Kaggle broke" in refusal(tmp_path)
    assert len(ranges(server, "train.zip")) == 1 + len(download.BACKOFF)


class Forever(dict):
    def pop(self, name):
        return self[name]


@pytest.fixture(scope="module", autouse=True)
def quick_processes():
    """A server of processes that has imported torch, once for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.set_forkserver_preload([__name__])
        forkserver.ensure_running()


def in_a_process(action, *arguments):
    """-> a process that has begun action(*arguments) with the environment of now."""
    names = [name for name in os.environ if name == "HOME" or "KAGGLE" in name or "PROXY" in name.upper()]
    arguments = ({name: os.environ[name] for name in names}, action, *arguments)
    process = multiprocessing.get_context("forkserver").Process(target=run_action, args=arguments)
    process.start()
    return process


def run_action(environment, action, *arguments):
    os.environ.update(environment)
    download.COUNTS.update(SMALL_COUNTS)
    download.BACKOFF = ()
    try:
        action(*arguments)
    except UserError as error:
        sys.exit(str(error))


def ended(process) -> int:
    process.join(60)
    return process.exitcode


def test_another_process_goes_on_where_the_first_one_was_hung_up_on(server, kaggles, tmp_path):
    server.cut["train.zip"] = 0.4
    assert ended(in_a_process(fetch, tmp_path)) == 1
    assert not (tmp_path / "train").exists() and (tmp_path / "train.zip.part").exists()
    assert ended(in_a_process(fetch, tmp_path)) == 0
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    size = len(kaggles["train.zip"])
    second = ranges(server, "train.zip")[1]
    assert second >= 0.4 * size - download.CHUNK and server.sent["train.zip"] == round(0.4 * size) + size - second
    assert server.sent["train_masks.zip"] == len(kaggles["train_masks.zip"])


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, kaggles, tmp_path, honest):
    """Whether the server looks at If-Range, or sends the rest of the new one all the same."""
    server.cut["train.zip"], server.honest = 0.4, honest
    assert ended(in_a_process(fetch, tmp_path)) == 1
    changed = {**kaggles, "train.zip": kaggles["train.zip"].replace(NOISE, NOISE[::-1])}
    server.files, server.version["train.zip"] = changed, '"2"'
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(changed, *TRAINING)
    assert ranges(server, "train.zip")[1] > 0  # control: it did want to go on
    assert server.sent["train.zip"] >= 1.4 * len(kaggles["train.zip"]) - 1


@pytest.mark.parametrize("version", [None, 'W/"1"'])
def test_a_file_without_a_strong_version_is_begun_anew(server, kaggles, tmp_path, version):
    server.cut["train.zip"], server.version["train.zip"] = 0.4, version
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING) and ranges(server, "train.zip") == [0, 0]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "Kaggle doesn't know the key in KAGGLE_USERNAME and KAGGLE_KEY (401): it is wrong or expired. Make a "
              "new one at https://www.kaggle.com/settings/api."),
        (403, "only to who has accepted the competition's rules (403): do so at "
              "https://www.kaggle.com/c/carvana-image-masking-challenge/rules"),
        (404, "Kaggle answers 404, not found, when asked for the list of its files: see "),
        (400, "Kaggle answers 400 when asked for the list of its files; "),
    ],
)  # fmt: skip
def test_a_refusal_is_told_at_once_with_the_address_to_go_to(server, tmp_path, status, expected):
    server.answers = [(status, {})]
    assert expected in refusal(tmp_path)
    assert len(server.seen) == 1


def test_a_file_that_is_gone_is_named_before_any_is_fetched(server, tmp_path):
    del server.files["train_masks.zip"]
    assert "Kaggle has no train_masks.zip any more: see https://www.kaggle.com/c/carvana" in refusal(tmp_path)
    assert not server.sent


def test_a_server_that_wants_to_be_left_alone_is(server, kaggles, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    server.answers = [(429, {"Retry-After": "7"}), (429, {"Retry-After": "99999"}), (200, {})]
    server.store_answers = [503, 403]
    fetch(tmp_path)
    assert slept[:2] == [7, download.MAX_BACKOFF] and slept[2:] == [0.01, 0.02]
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)


def test_a_server_that_fails_for_ever_is_left(server, tmp_path, capsys):
    server.answers = [(500, {"Retry-After": "soon"})]
    expected = "Kaggle answers 500 when asked for the list of its files; https://status.kaggle.com may tell why."
    assert refusal(tmp_path) == expected
    assert len(server.seen) == 1 + len(download.BACKOFF)
    assert capsys.readouterr().out == f"{expected} Trying again in 0.01 s.\n{expected} Trying again in 0.02 s.\n"


def test_a_page_that_wants_a_login_is_not_kaggle(server, tmp_path):
    server.answers = [(203, {"Content-Type": "text/html"})]
    assert "isn't Kaggle: does this network want a login?" in refusal(tmp_path)


def test_no_network_and_a_proxy_that_is_gone_are_told(server, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:{closed.getsockname()[1]}")
    assert "The proxy in HTTPS_PROXY or HTTP_PROXY doesn't let the list of its files through" in refusal(tmp_path)
    with socket.socket() as probe:
        if probe.connect_ex(("localhost", 80)) == 0:
            pytest.skip("something listens on port 80, where the client looks for Kaggle on this machine")
    monkeypatch.setenv("HTTP_PROXY", "")
    assert "The connection to Kaggle broke, or there is none, at the list of its files. With" in refusal(tmp_path)


@pytest.mark.parametrize("answer", ["null", "5", '{"files": null}', '{"files": [1]}', '{"code": "x"}'])
def test_an_answer_that_the_client_can_not_read_is_not_kaggle(server, tmp_path, monkeypatch, answer):
    header = {"Content-Type": "application/json"}
    monkeypatch.setattr(Handler, "list_files", lambda self, page: self.answer(200, header, answer.encode()))
    assert "isn't Kaggle: does this network want a login?" in refusal(tmp_path)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://", "nonsense://"])
def test_a_proxy_that_is_none_is_told_at_once(server, tmp_path, monkeypatch, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    assert refusal(tmp_path) == "HTTPS_PROXY or HTTP_PROXY is no address of a proxy: mend or unset it."


def test_certificates_that_are_not_there_are_told_at_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such.pem")
    monkeypatch.setattr("kagglesdk.kaggle_http_client.KaggleHttpClient._get_request_url", lambda *_: "https://x.test/")
    assert refusal(tmp_path).startswith("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names no file of certificates")


def test_a_rest_that_is_not_the_one_asked_for_is_not_taken(server, kaggles, tmp_path, monkeypatch):
    """206, of the right version, but from another byte on."""
    server.cut["train.zip"] = 0.4
    send_header, wrong = Handler.send_header, []

    def shifted(self, name, value):
        if name == "Content-Range" and not wrong:
            wrong.append(value)
            value = re.sub(r"bytes \d+", "bytes 7", value)
        send_header(self, name, value)

    monkeypatch.setattr(Handler, "send_header", shifted)
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    assert wrong and ranges(server, "train.zip")[1] > 0 == ranges(server, "train.zip")[2]  # begun anew


@pytest.mark.parametrize(
    "known", ["[1]", "\xff", '{"version": "a\\nb", "size": 4000000}', '{"version": "x", "size": -1}', '{"size": 5}']
)
def test_a_part_of_which_nothing_is_known_is_begun_anew(server, kaggles, tmp_path, known):
    (tmp_path / "train.zip.part").write_bytes(b"half")
    (tmp_path / "train.zip.part.json").write_text(known, encoding="latin1")
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING) and ranges(server, "train.zip") == [0]


@pytest.mark.parametrize("in_the_way", ["hidden", "link", "file"])
def test_what_is_in_the_way_of_a_folder_is_told_before_the_first_byte(server, tmp_path, in_the_way):
    place = tmp_path / "train"
    if in_the_way == "hidden":
        place.mkdir()
        (place / ".DS_Store").touch()
    elif in_the_way == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.touch()
    assert refusal(tmp_path) == f"{place} is in the way, and holds no photos: remove it."
    assert not server.seen
    place.unlink() if place.is_symlink() or place.is_file() else shutil.rmtree(place)
    place.mkdir()  # control: an empty folder is not
    fetch(tmp_path)


# Zips


@pytest.mark.parametrize("damage", ["cut", "a bit"])
def test_a_damaged_zip_is_not_taken_and_fetched_anew(server, kaggles, tmp_path, damage):
    data = bytearray(kaggles["train.zip"])
    data[data.rindex(b"\xff\xd9") - 100] ^= 1  # in the last photo
    server.files["train.zip"] = bytes(data) if damage == "a bit" else kaggles["train.zip"][:-1000]
    assert "train.zip.part is damaged, or no whole zip (" in refusal(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, "metadata.csv", "train_masks")
    server.files["train.zip"] = kaggles["train.zip"]
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)


def test_a_zip_with_another_count_of_photos_or_cars_is_not_taken(server, kaggles, tmp_path):
    with zipfile.ZipFile(io.BytesIO(kaggles["train.zip"])) as archive:
        photos = {name: archive.read(name) for name in archive.namelist() if "/." not in name}
    last = max(photos)
    server.files["train.zip"] = zipped({name: data for name, data in photos.items() if name != last})
    expected = "train.zip.part holds 63 files of 4 cars, but the competition has 64 of 4."
    assert expected in refusal(tmp_path)
    server.files["train.zip"] = zipped({name.replace(last, "train/other_16.jpg"): photos[name] for name in photos})
    assert "holds 64 files of 5 cars, but the competition has 64 of 4." in refusal(tmp_path)
    assert not (tmp_path / "train").exists()


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../b_01.jpg", "leads elsewhere"), ("a/../../b_01.jpg", "leads elsewhere"), ("/b_01.jpg", "leads elsewhere"),
        ("..\\b_01.jpg", "leads elsewhere"), ("C:b_01.jpg", "leads elsewhere"), ("\\b_01.jpg", "leads elsewhere"),
        (link("train/b_01.jpg"), "is a link"), ("other/A_01.JPG", "holds 'A_01.JPG' twice"),
    ],
)  # fmt: skip
def test_a_zip_that_leads_elsewhere_is_refused(tmp_path, name, expected):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "train.zip").write_bytes(zipped({"train/a_01.jpg": b"a", name: b"b"}))
    with pytest.raises(RefusedError, match=re.escape(expected)):
        unpack(folder / "train.zip", folder / "train")
    assert [path.name for path in tmp_path.rglob("*")] == ["input", "train.zip"]
    (folder / "train.zip").write_bytes(zipped({"train/a_01.jpg": b"a", "train/b_01.jpg": b"b"}))  # control
    unpack(folder / "train.zip", folder / "train")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a_01.jpg", "b_01.jpg", "input", "train"]


def test_a_zip_with_a_password_is_refused(tmp_path):
    """Made here by the bit that says so; Python can't encrypt."""
    data = bytearray(zipped({"train/a_01.jpg": b"photo"}))
    for record, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(record) + flags] |= 1
    (tmp_path / "train.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"train\.zip is refused: it asks for a password\.$"):
        unpack(tmp_path / "train.zip", tmp_path / "train")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("declared", [10, 10**6])
def test_a_member_of_another_length_than_the_zip_declares_is_refused(tmp_path, method, declared):
    data = bytearray(zipped({"train/a_01.jpg": bytes(10**5)}, method))
    directory = data.rindex(b"PK\1\2")
    assert int.from_bytes(data[directory + 24 : directory + 28], "little") == 10**5
    data[directory + 24 : directory + 28] = declared.to_bytes(4, "little")
    if declared < 10**5:  # and with the sum of what it declares
        data[directory + 16 : directory + 20] = zlib.crc32(bytes(declared)).to_bytes(4, "little")
    (tmp_path / "train.zip").write_bytes(data)
    if declared < 10**5:  # no more than that is read
        unpack(tmp_path / "train.zip", tmp_path / "train")
        assert (tmp_path / "train/a_01.jpg").stat().st_size == declared
    else:
        with pytest.raises(RefusedError, match="is damaged"):
            unpack(tmp_path / "train.zip", tmp_path / "train")
        assert [path.name for path in tmp_path.iterdir()] == ["train.zip"]


def test_a_zip_that_swells_beyond_the_disk_is_told_before_it_is_unpacked(small_disk):
    folder, _ = small_disk
    (folder / "train.zip").write_bytes(zipped({"train/a_01.jpg": bytes(2**20)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match=r"left, but it takes 1.00MB to unpack .*train.zip: \d+kB are missing\. Make"):
        unpack(folder / "train.zip", folder / "train")
    assert [path.name for path in folder.iterdir()] == ["train.zip"]


def test_what_lies_there_by_hand_is_taken_without_a_key(kaggles, drawn, tmp_path):
    """Zips of any kind, in folders or flat, made on Windows or on a Mac, and a folder."""
    (tmp_path / "train_masks.zip").write_bytes(kaggles["train_masks.zip"])
    photos = {path.name: path.read_bytes() for path in (drawn / "train").iterdir()}
    (tmp_path / "train_hq.zip").write_bytes(zipped(photos))
    (tmp_path / "test.zip").write_bytes(zipped({rf"test\{name}": data for name, data in list(photos.items())[:5]}))
    (tmp_path / "sample_submission.csv.zip").write_bytes(kaggles["sample_submission.csv.zip"])
    (tmp_path / "notes.zip").write_bytes(b"of the user")
    fetch(tmp_path, test_images=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        "train_masks", "train_hq", "test", "sample_submission.csv", "notes.zip", ".lock",
    }  # fmt: skip
    assert {path.name: path.read_bytes() for path in (tmp_path / "train_hq").iterdir()} == photos
    assert len(list((tmp_path / "test").iterdir())) == 5
    assert len(DatasetFetcher(CarvanaLayout(tmp_path)).get_train_files()[0]) == 48


def test_a_zip_by_hand_that_is_broken_is_left_and_named(tmp_path, kaggles):
    (tmp_path / "train.zip").write_bytes(kaggles["train.zip"][:5000])
    (tmp_path / "train_masks.zip").write_bytes(kaggles["train_masks.zip"])
    with pytest.raises(UserError, match=r"train\.zip is damaged, or no whole zip \(.*\): get it once more"):
        fetch(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"train.zip", "train_masks", ".lock"}


# The disk


def test_too_small_a_disk_is_told_before_the_first_byte(server, small_disk):
    folder, _ = small_disk
    sentence = refusal(folder)
    assert re.search(
        r"disk has 2\d\dkB left, but it takes \d\.\d\dMB to fetch and unpack metadata\.csv\.zip, train_masks\.zip, "
        r"train\.zip: \d\.\d\dMB are missing\. Make room, or name a folder on another disk: --input-dir FOLDER",
        sentence,
    )
    assert not server.sent and [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("full_at", ["train_masks", "train.zip.part"])
def test_a_disk_that_fills_up_meanwhile_keeps_what_was_fetched(server, kaggles, small_disk, full_at):
    """As other programs may fill it: the list of files makes it look large enough."""
    folder, _ = small_disk
    server.listed = dict.fromkeys(kaggles, 1000)
    names = TRAINING if full_at == "train_masks" else ("metadata.csv", "train")
    if full_at != "train_masks":
        (folder / "train_masks").mkdir()
        (folder / "train_masks/a_01_mask.gif").touch()
    sentence = refusal(folder)
    assert re.search(rf"{full_at}.* can't be written \(No space left on device\)\. Make room or mend the", sentence)
    assert not list(folder.glob("*/*.jpg")) and not (folder / "train").exists()
    subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
    fetch(folder)
    assert read_tree(folder).items() >= expected_tree(kaggles, *names).items()
    assert server.sent["train_masks.zip"] == len(kaggles["train_masks.zip"]) * (full_at == "train_masks")
    assert full_at == "train_masks" or ranges(server, "train.zip")[-1] > 0


# Killed, stopped, started twice


def fetch_and_die(folder, moment, log=None, naive=False):
    """Fetch, until the `moment`th time that the folder is about to change: then be killed. log: takes these times."""
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


def unpack_naively(archive, target, count):
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(target.parent, [name for name in opened.namelist() if "/." not in name])
    archive.unlink()


def half_folders(folder, kaggles):
    """The names at which there is something else than in the end."""
    tree, whole = read_tree(folder), expected_tree(kaggles, *TRAINING)
    return [
        name for name in TRAINING
        if (folder / name).exists()
        and any(tree.get(path) != data for path, data in whole.items() if path.split("/")[0] == name)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_nothing_half_and_the_next_start_goes_on(server, kaggles, tmp_path):
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


def test_the_kill_would_show_a_half_folder(server, kaggles, tmp_path):
    """Control of the test above: zips unpacked at their place."""
    (tmp_path / "input").mkdir()
    assert ended(in_a_process(fetch_and_die, tmp_path / "input", 40, None, True)) == -signal.SIGKILL
    assert half_folders(tmp_path / "input", kaggles)


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_a_kill_in_the_middle_of_a_file_costs_no_more_than_what_is_on_its_way(server, kaggles, tmp_path, share):
    server.cut["train.zip"], server.stalls = share, 2
    process = in_a_process(fetch, tmp_path)
    assert server.reached.wait(30)
    part = tmp_path / "train.zip.part"
    size = len(kaggles["train.zip"])
    while not part.exists() or part.stat().st_size < share * size - download.CHUNK:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    assert ranges(server, "train.zip")[1] >= share * size - download.CHUNK


def fetch_unlocked(folder):
    fetcher.lock = lambda *_: None
    fetch(folder)


@pytest.mark.parametrize("action", [fetch, fetch_unlocked])
def test_two_processes_at_once_fetch_once(server, kaggles, tmp_path, action):
    """Control: without the lock, they fetch twice, or get into each other's way."""
    server.slow["train.zip"] = 1  # long enough for the second one to come
    processes = [in_a_process(action, tmp_path) for _ in range(2)]
    codes = [ended(process) for process in processes]
    once = codes == [0, 0] and server.sent == {f"{name}.zip": len(kaggles[f"{name}.zip"]) for name in TRAINING}
    assert once == (action is fetch)
    assert action is fetch_unlocked or read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)


def hold(folder):
    with files.lock(folder):
        (folder / "held").touch()
        time.sleep(0.5)


def test_a_lock_is_waited_for_with_a_word(tmp_path, capsys):
    process = in_a_process(hold, tmp_path)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    with pytest.raises(UserError, match="in use by another process"):
        files.lock(tmp_path)
    with files.lock(tmp_path, "Another one is at work; waiting."):
        assert ended(process) == 0
    assert capsys.readouterr().out == "Another one is at work; waiting.\n"


MAIN = f"""
import runpy, sys
from data import download
download.COUNTS.update({SMALL_COUNTS})
download.BACKOFF = ()
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


def start_main(folder, *arguments):
    """main.py, for which the competition is as small as the server's."""
    folders = ["--input-dir", folder / "input", "--output-dir", folder / "output", "--logs-dir", folder / "logs"]
    command = [sys.executable, "-c", MAIN, *map(str, [*folders, *SMALL, *arguments])]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


@pytest.mark.slow
def test_ctrl_c_in_the_middle_keeps_what_was_fetched_and_the_same_command_ends_with_a_submission(
    server, kaggles, tmp_path
):
    server.cut["train.zip"], server.stalls = 0.4, 5
    run = start_main(tmp_path, "--epochs", "1", "--workers", "0")
    assert server.reached.wait(60)
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGINT)
    printed = run.communicate(timeout=60)[0]
    assert run.returncode == 128 + signal.SIGINT and "Traceback" not in printed
    kept = "main.py: stopped by SIGINT. What has been fetched is kept, and the same command goes on."
    assert printed.splitlines()[-1] == kept
    assert ranges(server, "train.zip") == [0]

    server.stalls = 0
    run = start_main(tmp_path, "--epochs", "1", "--workers", "0")
    printed += run.communicate(timeout=300)[0]
    assert run.returncode == 0, printed
    assert ranges(server, "train.zip")[1] > 0
    assert read_tree(tmp_path / "input") == expected_tree(kaggles, *TRAINING, *PREDICTION)
    command = "kaggle competitions submit -c carvana-image-masking-challenge -f {} -m U-Net"
    submission = tmp_path / "output/submit.csv.gz"
    assert printed.splitlines()[-1] == f"upload it   {command.format(submission)}"
    names = [path.name for path in sorted((tmp_path / "input/test").iterdir())]
    assert [name for name, _ in rows_of(submission)] == ["img", *names]
    assert SECRET not in printed and STORE not in printed
    assert not any(SECRET.encode() in data for data in read_tree(tmp_path).values())


# Keys


def test_each_place_of_a_key_is_found_and_the_first_one_counts(monkeypatch, tmp_path):
    """From the last to the first, each set beside those before."""
    monkeypatch.setenv("HOME", str(tmp_path))
    kaggle = tmp_path / ".kaggle"
    kaggle.mkdir()
    assert download.find_credentials() is None
    (kaggle / "credentials.json").write_text("{}")
    assert download.find_credentials() == (str(kaggle / "credentials.json"), {})
    (kaggle / "kaggle.json").write_text('{"username": "d", "key": "4"}')
    assert download.find_credentials() == (str(kaggle / "kaggle.json"), {"username": "d", "password": "4"})
    other = tmp_path / "other"
    other.mkdir()
    (other / "kaggle.json").write_text('{"username": "c", "key": "3"}')
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(other))
    assert download.find_credentials() == (str(other / "kaggle.json"), {"username": "c", "password": "3"})
    monkeypatch.setenv("KAGGLE_USER", "b")
    monkeypatch.setenv("KAGGLE_PASSWD", "2\n")
    assert download.find_credentials() == ("KAGGLE_USER and KAGGLE_PASSWD", {"username": "b", "password": "2"})
    monkeypatch.setenv("KAGGLE_USERNAME", "a")
    monkeypatch.setenv("KAGGLE_KEY", "1")
    assert download.find_credentials() == ("KAGGLE_USERNAME and KAGGLE_KEY", {"username": "a", "password": "1"})
    (kaggle / "access_token").write_text("file\n")
    assert download.find_credentials() == ("~/.kaggle/access_token", {"api_token": "file"})
    for token in ("token", "t" * 1000):
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
        assert download.find_credentials() == ("KAGGLE_API_TOKEN", {"api_token": token})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"KAGGLE_USERNAME": "a"}, "KAGGLE_USERNAME is set, but KAGGLE_KEY isn't: set both, or neither."),
        ({"KAGGLE_PASSWD": SECRET}, "KAGGLE_PASSWD is set, but KAGGLE_USERNAME isn't: set both, or neither."),
        ({"KAGGLE_API_TOKEN": f"{SECRET}\nand more"}, "What KAGGLE_API_TOKEN holds can't be a key: copy it once more"),
        ({"KAGGLE_USER": "a", "KAGGLE_PASSWD": f"{SECRET}\u2026"}, "What KAGGLE_PASSWD holds can't be a key"),
        ({"FILE": f'{{"username": "{SECRET}"'}, "kaggle.json holds no username and key: have it made anew at http"),
        ({"FILE": f'{{"key": "{SECRET}"}}'}, "kaggle.json holds no username and key"),
        ({"FILE": "[]"}, "kaggle.json holds no username and key"),
        ({"KAGGLE_API_TOKEN": os.sep}, "What KAGGLE_API_TOKEN names or holds can't be read: make a token at https"),
        ({"KAGGLE_API_TOKEN": 200 * "\u00e9"}, "What KAGGLE_API_TOKEN names or holds can't be read"),
        (
            {"KAGGLE_API_TOKEN": "a", "KAGGLE_API_ENVIRONMENT": "MARS"},
            'Unrecognized value in KAGGLE_API_ENVIRONMENT: "MARS": unset it, or say PROD.',
        ),
    ],
)
def test_half_a_key_is_told_and_never_printed(monkeypatch, tmp_path, found, expected):
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    for name, value in found.items():
        if name == "FILE":
            (tmp_path / "kaggle.json").write_text(value)
        else:
            monkeypatch.setenv(name, value)
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize("held", ["[]", "null", "nonsense", '{"refresh_token": "a", "access_token_expiration": "x"}'])
def test_a_login_that_is_none_is_told(server, tmp_path, monkeypatch, held):
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/credentials.json").write_text(held)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    assert refusal(tmp_path / "input").endswith("credentials.json holds no login: say once more kaggle auth login")


def test_a_token_signs_in(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    fetch(tmp_path)
    assert {headers.get("Authorization") for _, _, headers in server.seen} == {f"Bearer {SECRET}", None}


def test_what_kaggle_auth_login_left_signs_in(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/credentials.json").write_text('{"refresh_token": "refresh"}')
    fetch(tmp_path / "input")
    assert {headers.get("Authorization") for _, _, headers in server.seen} == {f"Bearer {SECRET}", None}
    (tmp_path / ".kaggle/credentials.json").write_text("{}")
    assert "credentials.json holds no login: say once more kaggle auth login" in refusal(tmp_path / "other")


def test_without_a_key_and_without_photos_it_says_the_ways_on(tmp_path):
    sentence = refusal(tmp_path, test_images=True)
    assert "There is no train/ or train_hq/ and no train_masks/ and no test/ or test_hq/ in" in sentence
    assert all(way in sentence for way in ("/rules", "KAGGLE_API_TOKEN", "--input-dir", "--dataset sample"))
    assert list(tmp_path.iterdir()) == []


def test_photos_of_ones_own_need_no_kaggle(drawn, server, tmp_path):
    """Nor its tables, nor a folder that can be written to."""
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
    photo = next((folder / "train").iterdir())
    photo.rename(tmp_path / photo.name)
    with pytest.raises(UserError, match=r"input/train holds 63 files, not Kaggle's 64 photos\. Copy photos to predict"):
        fetch(folder, test_images=True)
    assert not server.seen  # control: as many as Kaggle's
    (tmp_path / photo.name).rename(photo)
    fetch(folder, test_images=True)
    assert set(server.sent) == {"test.zip", "sample_submission.csv.zip"}
