"""Rewards -> pairs."""

from persyn.pairs import build_pairs
from persyn.schemas import PAIRS, REWARDS, read_table, write_table
from stages import read_params, run


def main(rewards: str, out: str) -> None:
    write_table(build_pairs(read_table(rewards, REWARDS), **read_params("pairs", build_pairs)), out, PAIRS)


if __name__ == "__main__":
    run(main)
