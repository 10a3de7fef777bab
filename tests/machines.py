"""Machines of their own for tests: network namespaces with SSH servers, and a Slurm of one node. Root only."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.served import free_port, wait_for


def need(*programs: str) -> None:
    """Skip the test where one of these is missing, or where we may not start it."""
    if os.getuid() != 0:
        pytest.skip("network namespaces and system services need root")
    for program in programs:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{program} is not installed (Debian: iproute2, openssh-server, slurmctld, slurmd, munge)")


def system(*words: object) -> str:
    """The output of a command, which has to succeed."""
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    return subprocess.run(
        list(map(str, words)), check=True, capture_output=True, text=True, env=os.environ | path, timeout=60
    ).stdout


class Machines:
    """`node1`, `node2`, ...: each with an address of its own and an SSH server; `config` is SSH's configuration."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.names = folder, [f"node{number}" for number in range(1, count + 1)]
        self.config = folder / "ssh_config"
        self._tag = f"tg{os.getpid() % 10_000}"
        self._network = f"10.77.{os.getpid() % 250}"

    def address(self, name: str) -> str:
        return f"{self._network}.{int(name[4:]) + 1}"

    def namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    @contextmanager
    def up(self) -> Iterator["Machines"]:
        """The machines, until the end of the context."""
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host", "user"):
            system("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        shutil.copy(self.folder / "user.pub", self.folder / "authorized")
        with ExitStack() as stack:
            system("ip", "link", "add", self._tag, "type", "bridge")
            stack.callback(system, "ip", "link", "del", self._tag)
            system("ip", "addr", "add", f"{self._network}.1/24", "dev", self._tag)
            system("ip", "link", "set", self._tag, "up")
            for name in self.names:
                self._begin(name, stack)
            self._configure()
            yield self

    def _begin(self, name: str, stack: ExitStack) -> None:
        space, link = self.namespace(name), f"{self._tag}{name[4:]}"
        system("ip", "netns", "add", space)
        stack.callback(self._end, name)
        system("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        system("ip", "link", "set", link, "master", self._tag, "up")
        self.inside(name, "ip", "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            self.inside(name, "ip", "link", "set", device, "up")
        (self.folder / f"{name}.sshd").write_text(
            f"ListenAddress {self.address(name)}\nHostKey {self.folder}/host\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile {self.folder}/{name}.pid\n"
        )
        self.inside(
            name, shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin"), "-f", self.folder / f"{name}.sshd"
        )

    def _configure(self) -> None:
        host_key = (self.folder / "host.pub").read_text().rsplit(" ", 1)[0]
        known = [f"{self.address(name)} {host_key}" for name in self.names]
        (self.folder / "known_hosts").write_text("\n".join(known) + "\n")
        hosts = [f"Host {name}\n  HostName {self.address(name)}\n" for name in self.names]
        common = (
            f"Host *\n  User root\n  IdentityFile {self.folder}/user\n  UserKnownHostsFile {self.folder}/known_hosts\n"
        )
        self.config.write_text("".join(hosts) + common)

    def inside(self, name: str, *words: object) -> str:
        """What a command prints on a machine."""
        return system("ip", "netns", "exec", self.namespace(name), *words)

    def working(self, name: str) -> list[int]:
        """The processes of a machine, but for its SSH server and connections."""
        found = []
        for pid in map(int, system("ip", "netns", "pids", self.namespace(name)).split()):
            with suppress(OSError):
                if "sshd" not in Path(f"/proc/{pid}/comm").read_text():
                    found.append(pid)
        return found

    def cut(self, name: str, state: str = "down") -> None:
        """Pull a machine's cable, or put it back."""
        system("ip", "link", "set", f"{self._tag}{name[4:]}", state)

    def _end(self, name: str) -> None:
        for pid in system("ip", "netns", "pids", self.namespace(name)).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
        system("ip", "netns", "del", self.namespace(name))


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A Slurm whose one node is this machine, for the commands sbatch, squeue and scancel."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    munge = folder / "munge"
    munge.mkdir(mode=0o755)
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP
""")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    parts = (
        ("munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
         f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
        ("slurmctld", "-D", "-f", folder / "slurm.conf"),
        ("slurmd", "-D", "-f", folder / "slurm.conf"),
    )  # fmt: skip
    with ExitStack() as stack:
        stack.callback(os.environ.pop, "SLURM_CONF")
        for name, *words in parts:
            program = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin")
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen([str(program), *map(str, words)], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            time.sleep(0.3)
        wait_for(lambda: "idle" in _answer("sinfo"), "a Slurm with an idle node")
        yield


def _answer(program: str) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=False).stdout
