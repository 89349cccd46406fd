"""Checkpoint to bundle: capture graphs, quantize, verify against full precision, assemble."""

if __name__ == "export":  # reached by folder name from the repository root
    raise ImportError("import storyv_lite.export; `export` is only the folder it lives in")
