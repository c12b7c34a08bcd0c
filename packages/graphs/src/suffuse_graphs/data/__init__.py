"""Graphs with labelled nodes (`nodes`) and signals on graphs (`signals`), as PyG data and tensors."""
