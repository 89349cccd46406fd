"""The torch definition of the network, shared by `train`, `export` and one backend."""
