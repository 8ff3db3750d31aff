"""How fast several clients make chat-completion calls, side by side on loopback.

    python benchmarks/collect_peers.py [--calls 2000] [--in-flight 64] [--latency 0] [--repeats 5]
    python benchmarks/collect_peers.py --kill-half --latency 0.2 [--repeats 3]

Each client has a virtual environment of its own, made once. It runs on one processor core and the
endpoint (`benchmarks/endpoint.py`) on another; the clients take turns, and medians are printed. The
clock runs over the calls only: imports and the start of processes are left out. The peak of memory
is that of the client's largest process.

With `--kill-half` a client is killed (SIGKILL) when half of the calls were paid for, started again
with the same command, and what was paid for twice is read from the endpoint's ledger.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

_HERE = Path(__file__).parent
_OURS = "selfchat"
_TOLD_VERSIONS = (
    *("aiohttp", "httpx", "httpx2", "openai", "litellm", "bespokelabs-curator"),
    *("data-designer", "distilabel", "pydantic"),
)


class Peer(NamedTuple):
    """A client: its script, with arguments, and what is installed for it."""

    name: str
    script: tuple[str, ...]
    requirements: tuple[str, ...]
    resumes: bool = False


class Failed(Exception):
    """A client that could not be installed or run; says why."""


def _our_requirements() -> tuple[str, ...]:
    project = tomllib.loads((_HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    return tuple(project["dependencies"])


_PEERS = (
    Peer("aiohttp", ("raw_aiohttp.py",), ("aiohttp==3.14.5",)),
    Peer(_OURS, ("selfchat_collect.py",), _our_requirements(), resumes=True),
    Peer("openai", ("openai_calls.py", "httpx"), ("openai==3.54.0",)),
    Peer("openai+aiohttp", ("openai_calls.py", "aiohttp"), ("openai[aiohttp]==3.54.0",)),
    Peer("curator", ("curator_llm.py",), ("bespokelabs-curator==0.1.31",), resumes=True),
    Peer("data-designer", ("designer.py",), ("data-designer==0.9.6",), resumes=True),
    Peer("litellm", ("litellm_calls.py",), ("litellm==1.106.2",)),
    Peer(
        "distilabel",
        ("distilabel_task.py",),
        ("distilabel[openai]==1.5.3", "requests", "beautifulsoup4"),  # used, and not named by it
        resumes=True,
    ),
)


class House:
    """The virtual environments, one a client."""

    def __init__(self, folder: Path, source: Path) -> None:
        self._folder = folder.resolve()
        self._source = source.resolve()

    def python(self, peer: Peer) -> Path:
        return self._folder / peer.name / "bin/python"

    def _stamp(self, peer: Peer) -> Path:
        return self._folder / peer.name / "requirements.txt"

    def install(self, peer: Peer) -> None:
        """Make the environment, unless it is there with the same requirements."""
        folder = self._folder / peer.name
        wanted = "\n".join(peer.requirements)
        stamp = self._stamp(peer)
        if stamp.exists() and stamp.read_text("utf-8") == wanted:
            return
        print(f"installing {peer.name}: {', '.join(peer.requirements)}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(self.python(peer)), "-m", "pip", "install", "--quiet", *peer.requirements])
        stamp.write_text(wanted, "utf-8")

    def versions(self, peer: Peer) -> dict[str, str]:
        """What is installed for a client that matters; nothing where installing it failed."""
        if not self._stamp(peer).exists():
            return {}
        listed = [str(self.python(peer)), "-m", "pip", "list", "--format", "json"]
        found = {row["name"].lower(): row["version"] for row in json.loads(_run(listed))}
        return {name: found[name] for name in _TOLD_VERSIONS if name in found}

    def environment(self, peer: Peer) -> dict[str, str]:
        """Nothing of a client's is kept outside of its folder, and nothing goes through a proxy."""
        home = self._folder / peer.name / "home"
        home.mkdir(exist_ok=True)
        own = {"HOME": str(home), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
        if peer.name == _OURS:
            own["PYTHONPATH"] = str(self._source / "src")
        return os.environ | own


def _run(command: Sequence[str]) -> str:
    """What a command prints; one that fails says why with its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(_last_line(done.stderr or done.stdout) or f"exit {done.returncode}")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


class Endpoint:
    """A running endpoint."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ledger(self) -> dict[str, Any]:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/ledger") as answer:
            told: dict[str, Any] = json.load(answer)
        return told


@contextmanager
def running_endpoint(latency: float, core: int) -> Iterator[Endpoint]:
    script = str(_HERE / "endpoint.py")
    command = [sys.executable, script, "--latency", str(latency), "--cpu", str(core)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Endpoint(json.loads(process.stdout.readline())["url"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Client:
    """A running client, in a process group of its own."""

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        self._out, self._errors = folder / "stdout", folder / "stderr"
        with self._out.open("w") as out, self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdout=out,
                stderr=errors,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()

    def finish(self, timeout: float) -> str:
        """Wait for its end; give the last line that it printed."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {timeout:.0f} seconds") from None
        if status:
            raise Failed(_last_line(self._errors.read_text("utf-8", "replace")))
        return _last_line(self._out.read_text("utf-8", "replace"))

    def kill_at(self, calls: int, endpoint: Endpoint, timeout: float) -> int:
        """Kill it when the endpoint has admitted so many calls; give how many they were."""
        stop = time.monotonic() + timeout
        while endpoint.ledger()["calls"] < calls:
            if time.monotonic() > stop:
                raise Failed(f"not half done after {timeout:.0f} seconds")
            if self._process.poll() is not None:
                raise Failed("it ended before it was killed")
            time.sleep(0.01)
        self.kill()
        return int(endpoint.ledger()["calls"])

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Bench:
    """Runs clients as the options say."""

    def __init__(self, options: argparse.Namespace, house: House, endpoint_core: int) -> None:
        self._options, self._house, self._core = options, house, endpoint_core

    def figures(self, peer: Peer) -> dict[str, float]:
        """The figures of one run, of the kind that was asked for."""
        with (
            running_endpoint(self._options.latency, self._core) as endpoint,
            TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder,
        ):
            run = self._killed if self._options.kill_half else self._timed
            return run(peer, endpoint, Path(folder))

    def _timed(self, peer: Peer, endpoint: Endpoint, folder: Path) -> dict[str, float]:
        with self._start(peer, endpoint, folder) as client:
            used = json.loads(client.finish(self._options.timeout))
        ledger, calls = endpoint.ledger(), self._options.calls
        if not ledger["calls"] == ledger["distinct"] == calls:
            raise Failed(f"{ledger['calls']} calls, {ledger['distinct']} distinct, of {calls}")
        return {
            "calls_per_second": calls / used["seconds"],
            "processor_ms": used["processor_seconds"] / calls * 1000,
            "peak_mb": used["peak_mb"],
            "endpoint_busy": ledger["processor_seconds"] / ledger["span_seconds"],
        }

    def _killed(self, peer: Peer, endpoint: Endpoint, folder: Path) -> dict[str, float]:
        """What a client paid for that was killed at half of its calls and started again."""
        with self._start(peer, endpoint, folder, "--bare") as client:
            at_kill = client.kill_at(self._options.calls // 2, endpoint, self._options.timeout)
        with self._start(peer, endpoint, folder, "--bare") as client:
            client.finish(self._options.timeout)
        ledger = endpoint.ledger()
        if ledger["distinct"] != self._options.calls:
            raise Failed(f"{ledger['distinct']} distinct calls of {self._options.calls}")
        return {"at_kill": at_kill, "paid": ledger["calls"], "paid_twice": ledger["repeats"]}

    def _start(self, peer: Peer, endpoint: Endpoint, folder: Path, *more: str) -> Client:
        script, *arguments = peer.script
        command = [
            *(str(self._house.python(peer)), str(_HERE / "peers" / script), *arguments),
            *("--base-url", endpoint.url, "--folder", str(folder)),
            *("--calls", str(self._options.calls), "--in-flight", str(self._options.in_flight)),
            *more,
        ]
        return Client(command, folder, self._house.environment(peer))


def install_all(peers: Sequence[Peer], house: House) -> dict[str, str]:
    """Install what is missing; give the reasons of those that could not be."""
    failed = {}
    for peer in peers:
        try:
            house.install(peer)
        except Failed as reason:
            failed[peer.name] = f"not installed: {reason}"
    return failed


def run_all(
    peers: Sequence[Peer], bench: Bench, repeats: int, failed: dict[str, str]
) -> dict[str, list[dict[str, float]]]:
    """Every client's runs, in turn; the reasons of those that fail are added to `failed`."""
    runs: dict[str, list[dict[str, float]]] = {peer.name: [] for peer in peers}
    for turn in range(repeats):
        for peer in peers:
            if peer.name in failed:
                continue
            print(f"turn {turn + 1} of {repeats}: {peer.name}", file=sys.stderr)
            try:
                runs[peer.name].append(bench.figures(peer))
            except (Failed, ValueError, KeyError) as reason:
                failed[peer.name] = f"turn {turn + 1}: {reason}"
    return runs


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


def add_ratios(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row our figures divided by its own."""
    ours = next((row["medians"] for row in rows if row["name"] == _OURS and "medians" in row), None)
    for row in rows:
        if ours and "medians" in row:
            theirs = row["medians"]
            row["ours_divided"] = {
                name: round(ours[name] / theirs[name], 3)
                for name in ("calls_per_second", "processor_ms", "peak_mb")
            }


def show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        versions = " ".join(f"{name} {version}" for name, version in row["versions"].items())
        print(f"{row['name']:<15} {versions}")
    print()
    measured = [row for row in rows if "medians" in row]
    if measured:
        print("".join([f"{'median':<15}", *(f"{name:>18}" for name in columns(measured[0]))]))
    for row in measured:
        figures = "".join(f"{value:>18,.3f}" for value in columns(row).values())
        print(f"{row['name']:<15}{figures}")
    for row in rows:
        if "failed" in row:
            print(f"{row['name']:<15} failed: {row['failed']}")


def columns(row: dict[str, Any]) -> dict[str, float]:
    ratios = row.get("ours_divided", {})
    shown: dict[str, float] = row["medians"]
    return shown | {f"ours/{name.split('_')[0]}": ratios[name] for name in ratios}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of a run at most")
    parser.add_argument("--only", default="", help="names of clients, with commas between")
    parser.add_argument("--kill-half", action="store_true", help="what is paid for twice")
    parser.add_argument("--source", type=Path, default=_HERE.parent, help="Selfchat to measure")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--venvs", type=Path, default=cache / "selfchat/peers")
    return parser.parse_args()


def choose(only: str, kill_half: bool) -> list[Peer]:
    """The clients of those names, or all; only some can be killed and go on."""
    names = [name for name in only.split(",") if name]
    if unknown := set(names) - {peer.name for peer in _PEERS}:
        sys.exit(f"no such client: {', '.join(sorted(unknown))}")
    chosen = [peer for peer in _PEERS if not names or peer.name in names]
    return [peer for peer in chosen if peer.resumes or not kill_half]


def main() -> None:
    options = read_options()
    peers = choose(options.only, options.kill_half)
    house = House(options.venvs, options.source)
    failed = install_all(peers, house)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # clients are ended too
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two processor cores are needed: one for the client, one for the endpoint")
    os.sched_setaffinity(0, cores[:1])  # the clients inherit it
    bench = Bench(options, house, cores[1])
    runs = run_all(peers, bench, options.repeats, failed)
    rows: list[dict[str, Any]] = []
    for peer in peers:
        row: dict[str, Any] = {"name": peer.name, "versions": house.versions(peer)}
        if runs[peer.name]:
            row |= {"runs": runs[peer.name], "medians": medians(runs[peer.name])}
        if peer.name in failed:
            row["failed"] = failed[peer.name]
        rows.append(row)
    if not options.kill_half:
        add_ratios(rows)
    show(rows)
    chosen = {name: getattr(options, name) for name in ("calls", "in_flight", "latency", "repeats")}
    print(
        json.dumps(
            {
                "benchmark": "kill_half" if options.kill_half else "collect_peers",
                "python": platform.python_version(),
                **chosen,
                "peers": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
