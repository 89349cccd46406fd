"""Bundle to frames: the story loop. Knows no framework outside `backends/`."""

if __name__ == "runtime":  # reached by folder name from the repository root
    raise ImportError("import storyv_lite.runtime; `runtime` is only the folder it lives in")
