"""The folder of images that are fetched by URL: when it is removed, and when it cannot be used."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx2
import pytest

from intaglio import InputError
from intaglio.serve.engine.images import ImageStore, TemporaryImages
from intaglio.serve.errors import ApiError
from tests.serve.conftest import PROMPT, fetch, serving


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which servers of this process and its children make temporary folders."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.reported(
    "gradio-app/gradio#4431",
    "AUTOMATIC1111/stable-diffusion-webui#11040",
    "TheLastBen/fast-stable-diffusion#2285",
)
@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_was_swept_is_made_again(
    forked_bundle: Path, tmp_path: Path, temporary: Path, named: bool
) -> None:
    """After something removed the folder of images, the server makes it again."""
    settings = {"images": tmp_path / "images"} if named else {}
    with serving(forked_bundle, **settings) as server:
        for _ in range(2):
            body = {"prompt": PROMPT, "steps": 1}
            answer = server.client.post("/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
            assert fetch(answer.json()["data"][0]["url"]).content.startswith(b"\x89PNG")
            folder = server.services.store.folder
            shutil.rmtree(folder)
        server.services.store.expire()
    if not named:
        assert folder.parent == temporary
        assert not list(temporary.iterdir())


def test_a_temporary_folder_belongs_to_its_user() -> None:
    store = TemporaryImages(600)
    for _ in range(2):
        name = store.write(b"an image")
        assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
        assert store.find(name)
        shutil.rmtree(store.folder)


WORDS = {
    errno.ENOSPC: "free disk space on the server",
    errno.EDQUOT: "quota",
    errno.EACCES: "let the server's user write",
    errno.EROFS: "a file system that can be written",
    errno.EMFILE: "limits.connections",
    errno.ENFILE: "fs.file-max",
    errno.EIO: "check the server's disk",
    errno.ELOOP: "its log",
}


@pytest.mark.parametrize(("number", "words"), WORDS.items(), ids=map(errno.errorcode.get, WORDS))
def test_each_cause_has_its_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def failing(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(ApiError, match=words) as raised:
        ImageStore(tmp_path, 600).write(b"an image")
    assert os.strerror(number) in raised.value.detail.message
    assert str(tmp_path) not in raised.value.detail.message  # clients need not know the path
    assert ("free disk space" in raised.value.detail.message) == (number == errno.ENOSPC)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.touch()
    with pytest.raises(ApiError, match="Not a directory; set `images` to a folder"):
        ImageStore(images, 600).write(b"an image")
    with pytest.raises(InputError, match="File exists; set `images` to a folder"):
        ImageStore(images, 600).check()


KILLED = """
import os, signal
from intaglio.serve.engine.images import TemporaryImages
TemporaryImages(600).write(b"an image")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_of_killed_servers_are_removed(temporary: Path) -> None:
    """The next server removes them, but neither those of others that run nor other folders."""
    (temporary / "intaglio-other").mkdir()
    running = TemporaryImages(600)
    name = running.write(b"an image")
    ended = subprocess.run([sys.executable, "-c", KILLED])
    assert ended.returncode == -signal.SIGKILL
    assert len(list(temporary.iterdir())) == 3
    TemporaryImages(600).close()
    assert {path.name for path in temporary.iterdir()} == {"intaglio-other", running.folder.name}
    assert running.find(name)
    running.close()
    assert [path.name for path in temporary.iterdir()] == ["intaglio-other"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_ends_the_server(
    forked_bundle: Path, temporary: Path, ignored: bool
) -> None:
    """SIGHUP ends it like SIGTERM and removes its folder; after `nohup` it goes on."""
    line = [sys.executable, "-m", "intaglio", "serve", forked_bundle, "--port", "0"]
    with subprocess.Popen(
        [*(["nohup"] if ignored else []), *line],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        try:
            url = process.stdout.readline().split()[-1]
            with httpx2.Client(base_url=url, timeout=120) as client:
                body = {"prompt": PROMPT, "steps": 1}
                client.post("/v1/images/generations", json=body).raise_for_status()
                assert len(list(temporary.iterdir())) == 1
                process.send_signal(signal.SIGHUP)
                if ignored:
                    client.post("/v1/images/generations", json=body).raise_for_status()
                    client.get("/readyz").raise_for_status()  # a stopping server fails this
            if ignored:
                process.terminate()
            assert process.wait(120) == 0
            assert not list(temporary.iterdir())
        finally:
            process.kill()
