"""Tests of PerSyn."""
