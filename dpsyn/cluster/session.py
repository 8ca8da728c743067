"""The Ray cluster of a run: this machine, begun and ended here, or one that is there.

What Ray writes down is open to all users of a machine (measured with 2.60: session folders are 0777 and spilled objects
0644, and `_temp_dir` itself is made 0777). So a cluster of our own has its folders below one that is ours alone and
lets in nobody without a token that is in no file, and no private row and no exact count is ever given to Ray in clear.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from dpsyn.errors import UserError, check_packages, first_line, invalid
from dpsyn.networks.runtime import OnRay
from dpsyn.threads import processors

PRIVATE = "private"  # the resource of nodes that may hold private rows
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
REACHED = 5.0  # seconds in which an address answers
PATH = 30  # characters before the name of Ray's folder: its sockets have names of 107 at most


@contextmanager
def connected(runtime: OnRay) -> Iterator[list[str]]:
    """While it lasts, Ray works for this process. Gives lines about it for the user. Raises UserError where there is no
    such cluster, or it has not what is asked of it."""
    check_packages("runtime", "ray", "ray", do="Install it: pip install 'dpsyn[ray]'")
    os.environ.update(SILENT)
    if runtime.address is None and "ray" not in sys.modules:  # it reads them once, when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    given: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR"}
    with ExitStack() as stack:
        if runtime.address is None:
            place = tempfile.gettempdir()
            folder = tempfile.TemporaryDirectory(
                prefix="dpsyn-", dir=place if len(place) < PATH else "/tmp", ignore_cleanup_errors=True
            )
            given |= {"_temp_dir": f"{stack.enter_context(folder)}/ray", "include_dashboard": False}
            given |= {"num_cpus": max(processors(), runtime.shards or 1) + runtime.makers, "resources": {PRIVATE: 1}}
        else:
            _reach(runtime.address)
        wrong = ""
        try:
            ray.init(address=runtime.address, **given)
        except Exception as error:
            wrong = first_line(error)
        if wrong:
            raise _refusal(runtime, wrong)
        stack.callback(ray.shutdown)
        _check(runtime)
        yield _lines(runtime)


def private_nodes() -> list[dict[str, Any]]:
    """The nodes that may hold private rows, as Ray tells them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(PRIVATE)]


def shards_of(runtime: OnRay) -> int:
    """One a processor of the nodes that may hold private rows, where no number is given."""
    return runtime.shards or max(1, int(sum(node["Resources"].get("CPU", 0) for node in private_nodes())))


def _reach(address: str) -> None:
    """Ray would try for ever where nobody answers, or one side alone speaks TLS."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return
    place, is_tls = (host.strip("[]"), int(port)), False
    try:
        socket.create_connection(place, REACHED).close()
    except OSError:
        do = "`ray start --head` prints it; null starts a cluster on this machine."
        raise invalid("runtime.address", address, "the address of a Ray cluster that answers", do) from None
    asked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asked.check_hostname, asked.verify_mode = False, ssl.CERT_NONE  # nothing is sent: Ray looks at the certificate
    with suppress(OSError), socket.create_connection(place, REACHED) as plain, asked.wrap_socket(plain):
        is_tls = True
    if is_tls != _uses_tls():
        what = "a cluster that speaks TLS, as RAY_USE_TLS=1 says" if _uses_tls() else "a cluster without TLS"
        do = "" if _uses_tls() else "Set RAY_USE_TLS=1 here too, and RAY_TLS_SERVER_CERT, _SERVER_KEY and _CA_CERT."
        raise invalid("runtime.address", address, what, do)


def _uses_tls() -> bool:
    return os.environ.get("RAY_USE_TLS") == "1"


def _refusal(runtime: OnRay, said: str) -> UserError:
    if re.search(r"[Vv]ersion mismatch", said):
        import ray

        here = f"Ray {ray.__version__} and Python {platform.python_version()}"
        return invalid("runtime.address", runtime.address, f"a cluster with what is here, {here}")
    if re.search(r"[Aa]uth|[Tt]oken", said):
        do = "Give all nodes and this process the same RAY_AUTH_TOKEN, or ~/.ray/auth_token."
        return invalid("runtime.address", runtime.address, "a Ray cluster that lets this user in", do)
    if runtime.address is None:
        return UserError(f"runtime=ray: no cluster can be started on this machine ({said}).")
    do = "`ray start --head` starts one; null starts one on this machine."
    return invalid("runtime.address", runtime.address, "the address of a Ray cluster that is there", do)


def _check(runtime: OnRay) -> None:
    import ray

    there = ray.cluster_resources()
    if not private_nodes():
        do = f"Start the nodes that may hold private rows with `ray start --resources='{{\"{PRIVATE}\": 1}}'`."
        raise invalid("runtime.address", runtime.address, f"a node with the resource {PRIVATE}", do)
    gpus = int(there.get("GPU", 0))
    if runtime.makers * runtime.gpus > gpus:
        raise invalid("runtime.gpus", runtime.gpus, f"no more than there are ({gpus}) for {runtime.makers} makers")
    if runtime.makers >= (cpus := int(there.get("CPU", 0))):
        raise invalid("runtime.makers", runtime.makers, f"fewer than the cluster has processors ({cpus})")


def _lines(runtime: OnRay) -> list[str]:
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    private = len(private_nodes())
    lines = [f"ray: {nodes} node(s), {runtime.makers} maker(s), {shards_of(runtime)} shard(s) on {private} private"]
    if runtime.address is not None and not _uses_tls():
        lines.append(
            "ray: RAY_USE_TLS is not set, so nodes talk in clear. Exact counts are padded, their keys are not: "
            "use a network of your own."
        )
    return lines
