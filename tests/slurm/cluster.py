"""A SLURM cluster of two nodes, n1 and n2, both this machine: Debian's slurm-wlm and munge, run as root."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
FirstJobId={first}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=1
MailProg=/bin/true
ReturnToService=2
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster on this machine, or None."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name, path=path) is None]
    if absent:
        return f"needs a SLURM of its own (apt-get install slurm-wlm munge): no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "starting a SLURM of its own needs root"


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `environment` makes SLURM's commands talk to it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: object, cwd: Path | None = None, **variables: str) -> str:
        """Standard output of a command on the cluster's login node, which is this machine."""
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=self.environment | variables
        )
        if done.returncode:
            raise AssertionError(f"{command} -> {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows about a job: JobState, Restarts, ExitCode, ..."""
        words = self.call("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_again(self, number: str) -> None:
        """Wait until a job is back in the queue, and spare it the two minutes that SLURM lets it wait there."""
        self.wait(lambda: self.job(number)["JobState"] == "PENDING", f"requeue of job {number}")
        self.call("scontrol", "update", f"JobId={number}", "StartTime=now+2")  # in the same second it would refuse

    def wait_for_all(self, seconds: float = 300) -> None:
        """Wait until no job is queued or running."""
        self.wait(lambda: not self.call("squeue", "--noheader").strip(), "end of all jobs", seconds)

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 300) -> None:
        deadline = time.time() + seconds
        while not condition():
            if time.time() > deadline:
                logs = [f"{path}:\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log"))]
                raise AssertionError("\n".join([f"no {what} within {seconds} s", *logs]))
            time.sleep(0.05)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start the daemons with all their files in `folder`, and stop them."""
    for name in ("state", "spool.n1", "spool.n2"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munge's clients must reach its socket
    configuration = folder / "slurm.conf"
    # ranks meet at a port that follows from the job's number: two clusters on one machine must not share numbers
    configuration.write_text(
        CONFIGURATION.format(host=socket.gethostname(), ports=free_ports(3), folder=folder, first=os.getpid())
    )
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    started = []

    def start(*command: str) -> None:
        with (folder / f"{len(started)}.out.log").open("w") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))

    result = Cluster(folder, environment)
    try:
        start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
        )  # fmt: skip
        result.wait(lambda: (folder / "munge.socket").exists(), "munge", 20)
        start("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        sinfo = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
        idle = partial(subprocess.run, sinfo, env=environment, capture_output=True)  # fails until slurmctld answers
        result.wait(lambda: len(idle().stdout.split()) == 2, "idle nodes", 60)
        yield result
    finally:
        if len(started) > 1:  # leave no process of a test that failed: a step outlives the daemons that started it
            with suppress(AssertionError):
                result.call("scancel", "--quiet", "--user=root")
                result.call("scancel", "--quiet", "--user=root", "--full", "--signal=KILL")
                result.wait_for_all(10)
        for process in reversed(started):
            process.kill()
            process.wait()
