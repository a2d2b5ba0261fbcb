"""Rows a second of 1 to 8 judge actors on several hosts, as a submitted job.

    python -m jobs.bench_hosts [--actors 1 2 4 8] [--workers 2] [--latency 1.0]

The hosts are network namespaces (`jobs.hosts`; root and iproute2): a head without work, workers, the endpoint
and the host that submits. Prints the table of `jobs.bench_judge`, and on how many hosts actors ran.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from jobs.hosts.cluster import Cluster

JOB = Path(__file__).with_name("bench_judge.py")
LONGEST = 900.0  # seconds


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency", type=float, default=1.0, help="of the endpoint, seconds")
    options = parser.parse_args()
    with Cluster(options.workers, latency=options.latency, plain=True) as cluster:
        cluster.start()
        command = [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address"]
        command += [cluster.dashboard, "--", sys.executable, str(JOB), "--only", "scaling"]
        command += ["--base-url", f"{cluster.endpoint}/v1", "--latencies", str(options.latency)]
        command += ["--actors", *map(str, options.actors), "--out", str(cluster.folder)]
        job = cluster.popen("client", command, cluster.environment())
        try:
            code = job.wait(LONGEST)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            print((cluster.folder / "client.log").read_text()[-3000:])
            return 1
        print((cluster.folder / "bench_judge.md").read_text())
        for one in json.loads((cluster.folder / "bench_judge.json").read_text())["scaling"]:
            print(f"{one['actors']} actors on {', '.join(one['hosts'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
