"""`python -m jobs.nightly`: the same as `imgcls nightly`, for `ray job submit`."""

from imgcls.cli import run_job

if __name__ == "__main__":
    raise SystemExit(run_job("nightly"))
