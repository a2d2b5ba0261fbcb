"""The in-cluster judge as a job that runs until it is stopped.

ray job submit --no-wait --working-dir . -- python -m jobs.serve_judge CONFIG.yaml [SECTION.KEY=VALUE ...]
"""

import sys

from lr_ray import config, serving
from lr_ray.cli import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: serving.serve(config.load(sys.argv[1], sys.argv[2:]))))
