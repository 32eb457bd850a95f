"""A cluster that talks by TLS, with certificates of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import PATIENCE, python

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cluster import Cluster

pytest.importorskip("distributed")

import mpkit.dask as mpkit

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


def certificates(folder: Path, name: str) -> dict[str, str]:
    """Make an authority, and a certificate that it has signed; return Dask's settings."""
    folder.mkdir()

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    key = "-newkey", "rsa:2048", "-nodes"
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=" + name)
    openssl("req", *key, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node")
    signer = "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"
    openssl("x509", "-req", "-in", "node.csr", *signer, "-out", "node.pem")
    settings = {"tls_ca_file": str(folder / "ca.pem")}
    for role in ("client", "scheduler", "worker"):
        settings[f"tls_{role}_cert"] = str(folder / "node.pem")
        settings[f"tls_{role}_key"] = str(folder / "node.key")
    return settings


def of_config(settings: dict[str, str]) -> dict[str, Any]:
    """Return them as a scheduler and workers find them in Dask's configuration."""
    config: dict[str, Any] = {"distributed.comm.tls.ca-file": settings["tls_ca_file"]}
    for role in ("client", "scheduler", "worker"):
        for kind in ("cert", "key"):
            path = settings[f"tls_{role}_{kind}"]
            config[f"distributed.comm.tls.{role}.{kind}"] = path
    return {
        **config,
        "distributed.comm.default-scheme": "tls",
        "distributed.comm.require-encryption": True,
    }


def echo(end: mpkit.Channel[Any, Any], scheme: str) -> None:
    import distributed

    assert distributed.get_worker().address.startswith(scheme)
    for what in end:
        end.send(what)


@needs_openssl
def test_all_of_it_goes_over_tls(make_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    from distributed import Security

    settings = certificates(tmp_path / "ours", "ours")
    cluster = make_cluster(2, config=of_config(settings))
    assert cluster.address.startswith("tls://")
    security = Security(require_encryption=True, **settings)
    with cluster.client(security=security) as client, client.as_current():
        here, there = mpkit.channel()  # to a worker
        job = mpkit.start(echo, there, "tls://")
        assert here.request(bytes(10**6), PATIENCE) == bytes(10**6)
        with cluster.client(security=security) as other:  # and from one client to the other
            mine, theirs = mpkit.channel()
            here.close()
            job.result(PATIENCE)
            with mpkit.TaskPool(client=other) as pool, mpkit.limit(2, name="tls"):
                assert pool.map(abs, range(-9, 0)) == list(range(9, 0, -1))
            mine.send(3)
            assert theirs.recv(PATIENCE) == 3
            mine.close()
            theirs.close()


STRANGER = """
import json, sys
from distributed import Client, Security
try:
    Client(sys.argv[1], security=Security(**json.loads(sys.argv[2])), timeout=5)
except OSError:
    print("refused")
"""


@needs_openssl
def test_who_has_no_certificate_of_the_cluster_is_refused(
    make_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = make_cluster(1, config=of_config(certificates(tmp_path / "ours", "ours")))
    theirs = certificates(tmp_path / "theirs", "theirs")
    # Such a client leaves its thread behind.
    with python(STRANGER, cluster.address, json.dumps(theirs)) as stranger:
        assert stranger.communicate(timeout=PATIENCE)[0] == "refused\n"
