"""Rehearsal: runs all stages of a profile on tiny random models of the same architectures, without a hub or a GPU."""
