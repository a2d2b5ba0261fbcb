"""Parts of the judge's benchmark (`jobs/bench_judge.py`)."""
