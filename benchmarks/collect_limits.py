"""How full an endpoint with limits is kept, and how many calls it refuses.

    python benchmarks/collect_limits.py [--rpm 3000] [--tpm 500000] [--seconds 180] [--told flags]

`--told` says how the limits are known: `flags` (--rpm and --tpm), `headers` (of the answers) or
`nothing` (only refusals tell of them). Fullness is judged over the time in which there was work,
without the first ten seconds and the last ones: of the unit that is nearer to its limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from selfchat.core.files import write_records
from selfchat.core.records import Seed

_HERE = Path(__file__).parent
_WARM_UP = 10  # seconds that are left out
_TOKENS_A_CALL = 410  # of the endpoint's transcripts, prompts included


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rpm", type=int, default=3000)
    parser.add_argument("--tpm", type=int, default=500_000)
    parser.add_argument("--seconds", type=int, default=180, help="about how long it is to take")
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--in-flight", type=int, default=128)
    parser.add_argument("--told", choices=("flags", "headers", "nothing"), default="flags")
    options = parser.parse_args()
    a_minute = min(options.rpm, options.tpm / _TOKENS_A_CALL)
    with tempfile.TemporaryDirectory() as folder:
        calls = int(a_minute * options.seconds / 60)
        seeds = Path(folder) / "seeds.jsonl"
        write_records(
            seeds, (Seed.make(f"Which facts matter on subject {n}?", "bench") for n in range(calls))
        )
        print(json.dumps(_measured(options, seeds, Path(folder) / "run")))


def _measured(options: argparse.Namespace, seeds: Path, run: Path) -> dict[str, Any]:
    limits = ["--rpm", str(options.rpm), "--tpm", str(options.tpm)]
    quiet = ["--no-headers"] if options.told == "nothing" else []
    script = [sys.executable, str(_HERE / "endpoint.py"), "--latency", str(options.latency)]
    endpoint = subprocess.Popen([*script, *limits, *quiet], stdout=subprocess.PIPE, text=True)
    try:
        assert endpoint.stdout is not None
        url = json.loads(endpoint.stdout.readline())["url"]
        command = [sys.executable, "-m", "selfchat", "collect", "--seeds", str(seeds)]
        command += ["--out", str(run), "--teacher", "openai:m", "--base-url", url, "--json"]
        command += ["--concurrency", str(options.in_flight)]
        command += limits if options.told == "flags" else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        with urllib.request.urlopen(f"{url}/ledger") as answer:
            ledger = json.load(answer)
    finally:
        endpoint.kill()
    return _judged(options, json.loads(done.stdout), ledger)


def _judged(
    options: argparse.Namespace, figures: dict[str, Any], ledger: dict[str, Any]
) -> dict[str, Any]:
    steady = ledger["by_second"][_WARM_UP:-5]
    a_minute = 60 * sum(steady) / len(steady)
    tokens_a_call = ledger["tokens"] / ledger["calls"]
    full = max(a_minute / options.rpm, a_minute * tokens_a_call / options.tpm)
    refused = figures["throttled"] / figures["attempts"]
    return {
        "told": options.told,
        "calls": ledger["calls"],
        "repeats": ledger["repeats"],
        "seconds": figures["seconds"],
        "calls_a_minute": round(a_minute),
        "tokens_a_minute": round(a_minute * tokens_a_call),
        "full": round(full, 4),
        "refused": round(refused, 5),
    }


if __name__ == "__main__":
    main()
