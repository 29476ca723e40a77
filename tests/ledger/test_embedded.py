"""Our own Postgres, and every way its owner or it can die."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psycopg
import pytest

from ledger.embedded import EmbeddedPostgres
from ledger.errors import EmbeddedFailed
from ledger.home import Home, libpq, normalise_url
from ledger.pgbinaries import choose_identity

OWNER = """
import sys, time
from pathlib import Path
from ledger.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1])).start()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder():
    made = Path(tempfile.mkdtemp(prefix="mend-e-"))
    made.chmod(0o711)
    yield made / "pg" / "pgdata"
    shutil.rmtree(made, ignore_errors=True)


def query(server, statement="SELECT 1"):
    with psycopg.connect(libpq(server.url()), autocommit=True) as conn:
        return conn.execute(statement).fetchone()


def test_starts_stops_recovers_and_keeps_what_was_committed(folder):
    server = EmbeddedPostgres(folder)
    with server:
        assert query(server, "SHOW fsync") == ("on",)
        assert query(server, "SHOW listen_addresses") == ("",)
        with psycopg.connect(libpq(server.url())) as conn:
            conn.execute("CREATE TABLE kept (n int)")
        with pytest.raises(EmbeddedFailed, match="in use by process"):
            EmbeddedPostgres(folder).start()
        os.kill(server.pid, signal.SIGKILL)
        server.start()
        assert query(server, "SELECT count(*) FROM kept") == (0,)
        assert (folder.parent.stat().st_mode & 0o777) == 0o700
    assert not server.alive()
    (folder / "postmaster.pid").write_text(f"{os.getpid()}\n{folder}\n")  # a number used again
    thread = threading.Thread(target=server.start)  # the thread ends, the server must not
    thread.start()
    thread.join()
    assert query(server, "SELECT count(*) FROM kept") == (0,)
    server.stop()


def test_dies_with_its_owner(folder):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": ""},
    )
    pid = int(owner.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    # The next owner waits for the old server to be gone: it would fail on a second one.
    with EmbeddedPostgres(folder) as server:
        assert server.pid != pid
        assert query(server) == (1,)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs the server as nobody")
def test_as_nobody(folder):
    with EmbeddedPostgres(folder, run_as="nobody") as server:
        assert query(server) == (1,)
        assert Path(f"/proc/{server.pid}").stat().st_uid not in {0, os.getuid()}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes an ordinary user")
def test_as_an_ordinary_user(folder):
    prefix = choose_identity().prefix
    if not prefix:
        pytest.skip("user namespaces are off here")
    script = (
        "import os, sys; from pathlib import Path; from ledger.embedded import EmbeddedPostgres\n"
        "s = EmbeddedPostgres(Path(sys.argv[1]))\n"
        "with s: print(os.geteuid(), s.identity.run_as, s.alive())"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-c", script, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HOME": ""},
    )
    assert done.stdout.split() == ["65534", "self", "True"], done.stderr


def test_long_paths_get_a_short_socket(folder):
    deep = folder.parent / ("x" * 100) / "pgdata"
    with EmbeddedPostgres(deep) as server:
        assert len(str(server.socket_dir)) < 80
        assert query(server) == (1,)
    shutil.rmtree(server.socket_dir, ignore_errors=True)


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEND_HOME", str(tmp_path / "m"))
    monkeypatch.delenv("DATABASE_URL", raising=False)
    home = Home.from_env()
    home.write_endpoint("postgresql+psycopg://postgres@/mend?host=/x")
    assert Home.from_env().resolve_database_url().endswith("host=/x")
    monkeypatch.setenv("MEND_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setenv("HOME", "")
    assert Home.from_env().root.is_absolute()


def test_connection_strings():
    url = normalise_url("postgresql://u:p%20w%27@/db?host=/sock/dir&port=5433")
    assert libpq(url) == r"host=/sock/dir port=5433 user=u password='p w\'' dbname=db"
