"""The loop, or one verb of it, as a job on a cluster; `lr-ray submit` does the whole line for you.

ray job submit --working-dir . -- python jobs/pipeline.py CONFIG.yaml [--verb VERB] [SECTION.KEY=VALUE ...]
"""

import argparse
import sys

from lr_ray import cli
from lr_ray.submit import VERBS

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--verb", choices=VERBS, default="run")
    given = parser.parse_intermixed_args()
    command = [given.verb, given.config, *given.overrides]
    sys.exit(cli.guarded(lambda: cli.cli.main(command, standalone_mode=False)))
