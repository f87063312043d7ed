"""Downloads from Kaggle, with a server on loopback in place of Kaggle."""

import io
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
from kagglesdk import KaggleClient, KaggleCredentials
from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest
from kagglesdk.kaggle_env import get_endpoint, get_env
from kagglesdk.users.types.account_service import ApiVersion, GenerateAccessTokenRequest

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
SMALL_COUNTS = {"train": 64, "train_hq": 64, "train_masks": 64, "test": 16, "test_hq": 16}
API = "http://localhost/api/v1/competitions.CompetitionApiService/"


class Server(ThreadingHTTPServer):
    """Implements the API methods that a download needs, and the file store that they redirect to.

    All http and https requests reach it as their proxy, so no request of a test can leave this machine.
    files: name -> bytes. sent: name -> number of bytes sent. seen: (HTTP method, URL, headers) of every request.
    posted: (URL, body) of every API request.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.sent, self.seen, self.posted = files, Counter(), [], []
        self.answers = []  # (status, headers) to send instead, one per request; the last one is repeated
        self.store_answers = []  # statuses, one per request
        self.slow = {}  # name -> seconds before the file is sent, once
        self.cut = {}  # name -> fraction of the file after which the next response stalls and disconnects
        self.stalls, self.honest, self.version = 0, True, {}  # seconds; whether it obeys If-Range; name -> ETag
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
        self.server.posted.append((self.path, asked))
        if self.path.endswith("/GenerateAccessToken"):
            if asked["refreshToken"] != "refresh":
                return self.answer(401)
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
        if self.path == API + "DownloadDataFile" and asked["fileName"] in self.server.files:
            return self.answer(302, {"Location": f"{STORE}{asked['fileName']}?signature={SECRET}-of-the-store"})
        return self.answer(404)

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
    """The competition's files, with drawn cars instead of its own, and noise to make a zip of a few MB."""
    folders = {"train": "train", "train_hq": "train", "train_masks": "train_masks", "test": "test", "test_hq": "test"}
    files = {}
    for name, source in folders.items():
        members = {f"{name}/{path.name}": path.read_bytes() for path in sorted((drawn / source).iterdir())}
        padding = NOISE if name == "train" else b""
        files[f"{name}.zip"] = zipped({f"{name}/.DS_Store": padding, f"__MACOSX/{name}/._a": b"", **members})
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


def test_requests_are_those_of_kaggles_client(server, tmp_path):
    download.Kaggle().fetch("train_masks.zip", tmp_path / "part")
    ours, server.posted = server.posted, []
    file = ApiDownloadDataFileRequest()
    file.competition_name, file.file_name = download.SLUG, "train_masks.zip"
    with KaggleClient(username="user", password=SECRET) as client:
        client.competitions.competition_api_client.download_data_file(file)
    assert ours == server.posted and len(ours) == 1


def test_credentials_are_sent_to_kaggle_and_nowhere_else(server, tmp_path):
    fetch(tmp_path)
    key = f"Basic {b64encode(f'user:{SECRET}'.encode()).decode()}"
    for method, address, headers in server.seen:
        assert headers.get("Authorization") == {"POST": key, "GET": None}[method]
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


def ranges(server, name):
    """The first byte of the range in each request for a file."""
    asked = [headers.get("Range", "bytes=0-") for _, address, headers in server.seen if f"{STORE}{name}?" in address]
    return [int(each[6:-1]) for each in asked]


def test_a_broken_connection_is_resumed_where_it_broke(server, kaggles, tmp_path, capsys):
    server.cut["train.zip"] = 0.4
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING)
    size = len(kaggles["train.zip"])
    first, second = ranges(server, "train.zip")
    assert first == 0 and 0.4 * size - download.CHUNK <= second <= 0.4 * size
    assert server.sent["train.zip"] == round(0.4 * size) + size - second
    printed = capsys.readouterr().out
    assert re.search(r"^Warning: The connection to Kaggle failed for train\.zip \(\w+\)\. .*Retrying", printed, re.M)


def test_a_stalled_connection_times_out_and_is_resumed(server, kaggles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "READ_TIMEOUT", 0.3)
    server.cut["train.zip"], server.stalls = 0.4, 1
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING) and ranges(server, "train.zip")[1] > 0
    printed = capsys.readouterr().out
    assert "Warning: The connection to Kaggle failed for train.zip" in printed and "Retrying in 0.01 s." in printed


def test_retries_end_if_the_connection_always_breaks(server, tmp_path):
    server.files["train.zip"] = server.files["train.zip"][:100]  # less than a chunk, so that there is no progress
    server.cut = Forever({"train.zip": 0.5})
    assert "The connection to Kaggle failed for train.zip" in refusal(tmp_path)
    assert len(ranges(server, "train.zip")) == 1 + len(download.BACKOFF)


class Forever(dict):
    def pop(self, name):
        return self[name]


def in_a_process(action, *arguments):
    """Returns a new process that runs action(*arguments)."""
    return fork(run_action, action, *arguments)


def run_action(action, *arguments):
    download.COUNTS.update(SMALL_COUNTS)
    download.BACKOFF = ()
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
    size = len(kaggles["train.zip"])
    second = ranges(server, "train.zip")[1]
    assert second >= 0.4 * size - download.CHUNK and server.sent["train.zip"] == round(0.4 * size) + size - second
    assert server.sent["train_masks.zip"] == len(kaggles["train_masks.zip"])


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.seconds
def test_a_changed_file_is_downloaded_from_the_start(server, kaggles, tmp_path, honest):
    """Both if the server obeys If-Range and if it sends the rest of the new version."""
    server.cut["train.zip"], server.honest = 0.4, honest
    assert ended(in_a_process(fetch, tmp_path)) == 1
    changed = {**kaggles, "train.zip": kaggles["train.zip"].replace(NOISE, NOISE[::-1])}
    server.files, server.version["train.zip"] = changed, '"2"'
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(changed, *TRAINING)
    assert ranges(server, "train.zip")[1] > 0  # control: it tried to resume
    assert server.sent["train.zip"] >= 1.4 * len(kaggles["train.zip"]) - 1


@pytest.mark.parametrize("version", [None, 'W/"1"'])
def test_a_file_without_a_strong_etag_is_downloaded_from_the_start(server, kaggles, tmp_path, version):
    server.cut["train.zip"], server.version["train.zip"] = 0.4, version
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING) and ranges(server, "train.zip") == [0, 0]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, "Kaggle answered 401 to the request for train_masks.zip with the credentials in environment variables. "
              "Create a new token at https://www.kaggle.com/settings/api."),
        (403, "Accept the competition's rules at https://www.kaggle.com/c/carvana-image-masking-challenge/rules."),
        (400, "Kaggle answered 400 to the request for train_masks.zip. See https://status.kaggle.com."),
    ],
)  # fmt: skip
def test_a_permanent_error_is_not_retried_and_names_a_remedy(server, tmp_path, status, expected):
    server.answers = [(status, {})]
    assert expected in refusal(tmp_path)
    assert len(server.seen) == 1


def test_temporary_errors_are_retried(server, kaggles, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(download, "BACKOFF", (1, 2, 3, 4))
    server.answers = [(429, {}), (500, {}), (200, {})]
    server.store_answers = [503, 403]
    fetch(tmp_path)
    assert slept == [1, 2, 3, 4]
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
    with socket.socket() as probe:
        if probe.connect_ex(("localhost", 80)) == 0:
            pytest.skip("port 80 of this machine, which stands for Kaggle here, is in use")
    monkeypatch.setenv("HTTP_PROXY", "")
    assert "The connection to Kaggle failed for train_masks.zip (ConnectionError). Check the" in refusal(tmp_path)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://", "nonsense://"])
def test_an_invalid_proxy_is_not_retried(server, tmp_path, monkeypatch, capsys, proxy):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    assert "(Invalid" in refusal(tmp_path) and "Retrying" not in capsys.readouterr().out


def test_a_missing_certificate_file_is_not_retried(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such.pem")
    monkeypatch.setattr("kagglesdk.kaggle_env.get_endpoint", lambda _: "https://kaggle.test")
    assert "HTTP_PROXY and REQUESTS_CA_BUNDLE" in refusal(tmp_path) and "Retrying" not in capsys.readouterr().out


def test_a_wrong_range_is_not_appended(server, kaggles, tmp_path, monkeypatch):
    """Status 206, of the right version, but from another byte on."""
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
    assert wrong and ranges(server, "train.zip")[1] > 0 == ranges(server, "train.zip")[2]  # downloaded from the start


@pytest.mark.parametrize(
    "known", ["{}", "[1, 2]", "\xff", '["a\\nb", 4000000]', '["x", -1]', '["x", "y"]', '["x"]']
)
def test_a_part_of_an_unknown_version_is_downloaded_from_the_start(server, kaggles, tmp_path, known):
    (tmp_path / "train.zip.part").write_bytes(b"half")
    (tmp_path / "train.zip.part.json").write_text(known, encoding="latin1")
    fetch(tmp_path)
    assert read_tree(tmp_path) == expected_tree(kaggles, *TRAINING) and ranges(server, "train.zip") == [0]


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


def test_a_zip_with_a_wrong_number_of_images_or_cars_is_refused(server, kaggles, tmp_path):
    with zipfile.ZipFile(io.BytesIO(kaggles["train.zip"])) as archive:
        images = {name: archive.read(name) for name in archive.namelist() if "/." not in name}
    last = max(images)
    server.files["train.zip"] = zipped({name: data for name, data in images.items() if name != last})
    assert "train.zip.part contains 63 images of 4 cars, not 64 images, 16 per car." in refusal(tmp_path)
    server.files["train.zip"] = zipped({name.replace(last, "train/other_16.jpg"): images[name] for name in images})
    assert "contains 64 images of 5 cars, not 64 images, 16 per car." in refusal(tmp_path)
    assert not (tmp_path / "train").exists()


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
    assert full_at == "train_masks" or ranges(server, "train.zip")[-1] > 0


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


def unpack_naively(archive, target, count):
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


def test_a_kill_can_leave_an_incomplete_folder(server, kaggles, tmp_path):
    """Control of the test above: zips unpacked in their final place."""
    (tmp_path / "input").mkdir()
    assert ended(in_a_process(fetch_and_die, tmp_path / "input", 40, None, True)) == -signal.SIGKILL
    assert half_folders(tmp_path / "input", kaggles)


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_a_kill_while_downloading_loses_at_most_a_chunk(server, kaggles, tmp_path, share):
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
    fetcher.lock = lambda *_: nullcontext()
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
    with files.lock(tmp_path, "Waiting for another process."):
        assert ended(process) == 0
    assert printed == ["Waiting for another process."]


MAIN = f"""
import runpy, sys
from data import download
from nn import unet
from tiny import SMALL_NETS
unet.NETS.update(SMALL_NETS)
download.COUNTS.update({SMALL_COUNTS})
download.BACKOFF = ()
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
"""


def start_main(folder, *arguments):
    """Start main.py for a competition as small as the server's."""
    script = folder / "small_competition.py"
    script.write_text(MAIN)
    return Program(script, *in_folder(folder, "--input-dir", folder / "input", *SMALL, *arguments))


@pytest.mark.seconds
def test_ctrl_c_keeps_the_partial_download_and_the_same_command_completes(server, kaggles, tmp_path):
    server.cut["train.zip"], server.stalls = 0.4, 5
    run = start_main(tmp_path, "--epochs", "1", "--workers", "0")
    assert server.reached.wait(60)
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGINT)
    printed = run.ended()
    assert run.code == 128 + signal.SIGINT and "Traceback" not in printed
    kept = "The download so far is kept. Run the same command again to resume it."
    assert printed.splitlines()[-1].endswith(kept)
    assert ranges(server, "train.zip") == [0]

    server.stalls = 0
    run = start_main(tmp_path, "--epochs", "1", "--workers", "0")
    printed += run.ended()
    assert run.code == 0, printed
    assert ranges(server, "train.zip")[1] > 0
    assert read_tree(tmp_path / "input") == expected_tree(kaggles, *TRAINING, *PREDICTION)
    command = "kaggle competitions submit -c carvana-image-masking-challenge -f {} -m U-Net"
    submission = tmp_path / "output/submit.csv.gz"
    assert printed.splitlines()[-1] == f"upload it   {command.format(submission)}"
    names = [path.name for path in sorted((tmp_path / "input/test").iterdir())]
    assert [name for name, _ in rows_of(submission)] == ["img", *names]
    assert SECRET not in printed and STORE not in printed
    assert not any(SECRET.encode() in data for data in read_tree(tmp_path).values())


# Credentials


def test_credentials_are_found_in_order(monkeypatch, tmp_path):
    """From the last place to the first, each added to the others."""
    monkeypatch.setenv("HOME", str(tmp_path))
    kaggle = tmp_path / ".kaggle"
    kaggle.mkdir()
    assert download.find_credentials() is None
    (kaggle / "credentials.json").write_text('{"refresh_token": "5"}')
    assert download.find_credentials() == (str(kaggle / "credentials.json"), {"refresh_token": "5"})
    (kaggle / "kaggle.json").write_text('{"username": "d", "key": "4"}')
    assert download.find_credentials() == (str(kaggle / "kaggle.json"), {"username": "d", "key": "4"})
    monkeypatch.setenv("KAGGLE_USER", "c")  # the tutorial's names
    monkeypatch.setenv("KAGGLE_PASSWD", "3")
    assert download.find_credentials() == ("environment variables", {"username": "c", "key": "3"})
    monkeypatch.setenv("KAGGLE_USERNAME", "a")
    monkeypatch.setenv("KAGGLE_KEY", "1\n")
    assert download.find_credentials() == ("environment variables", {"username": "a", "key": "1"})
    (kaggle / "access_token").write_text("file\n")
    assert download.find_credentials() == (str(kaggle / "access_token"), {"token": "file"})
    for token in ("token", "t" * 1000):
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
        assert download.find_credentials() == ("KAGGLE_API_TOKEN", {"token": token})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"KAGGLE_USERNAME": "a"}, "KAGGLE_USERNAME and KAGGLE_KEY must both be set, or neither."),
        ({"KAGGLE_KEY": SECRET}, "KAGGLE_USERNAME and KAGGLE_KEY must both be set, or neither."),
        ({"KAGGLE_API_TOKEN": f"{SECRET}\nand more"}, "The Kaggle credentials in KAGGLE_API_TOKEN are not valid."),
        ({"KAGGLE_USERNAME": "a", "KAGGLE_KEY": f"{SECRET}\u2026"}, "in environment variables are not valid"),
        ({"FILE": f'{{"username": "{SECRET}"'}, "kaggle.json must contain username and key. Create a"),
        ({"FILE": f'{{"key": "{SECRET}"}}'}, "kaggle.json must contain username and key."),
        ({"FILE": "[]"}, "kaggle.json must contain username and key."),
        ({"KAGGLE_API_TOKEN": 200 * "\u00e9"}, "The Kaggle credentials in KAGGLE_API_TOKEN are not valid."),
    ],
)
def test_invalid_credentials_are_refused_and_never_printed(monkeypatch, tmp_path, found, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kaggle").mkdir()
    for name, value in found.items():
        if name == "FILE":
            (tmp_path / ".kaggle/kaggle.json").write_text(value)
        else:
            monkeypatch.setenv(name, value)
    assert expected in refusal(tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", "nonsense", "{}", '{"refresh_token": 1}'])
def test_an_invalid_login_is_refused(server, tmp_path, monkeypatch, content):
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/credentials.json").write_text(content)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    assert "credentials.json must contain refresh_token. Create a new token at http" in refusal(tmp_path / "input")


def test_a_token_signs_in(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    fetch(tmp_path)
    assert {headers.get("Authorization") for _, _, headers in server.seen} == {f"Bearer {SECRET}", None}


def test_kaggle_auth_login_signs_in(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/credentials.json").write_text('{"refresh_token": "refresh"}')
    fetch(tmp_path / "input")
    assert {headers.get("Authorization") for _, _, headers in server.seen} == {f"Bearer {SECRET}", None}
    request = GenerateAccessTokenRequest()
    request.refresh_token, request.api_version = "refresh", ApiVersion.API_VERSION_V1
    request.expiration_duration = KaggleCredentials.DEFAULT_ACCESS_TOKEN_EXPIRATION
    with KaggleClient() as client:
        client.users.account_client.generate_access_token(request)
    assert server.posted[0] == server.posted[-1]  # ours is the request of Kaggle's client
    (tmp_path / ".kaggle/credentials.json").write_text('{"refresh_token": "expired"}')
    assert "credentials.json. Create a new token at https://www.kaggle.com/settings" in refusal(tmp_path / "other")


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
