"""Measure and report: one child process per measurement, records as JSON, reports as Markdown."""

if __name__ == "benchmarks":  # reached by folder name from the repository root
    raise ImportError("import storyv_lite.benchmarks; `benchmarks` is only the folder it lives in")
