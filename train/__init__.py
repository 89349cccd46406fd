"""Recipes: one readable loop per stage, from nothing to a checkpoint folder."""

if __name__ == "train":  # reached by folder name from the repository root
    raise ImportError("import storyv_lite.train; `train` is only the folder it lives in")
