"""Rewards -> pairs."""

from persyn.pairs import build_pairs
from persyn.project.params import read_params
from persyn.schemas import PAIRS, REWARDS, read_table, write_table
from stages import run


def main(rewards: str, out: str) -> None:
    params = read_params()
    write_table(build_pairs(read_table(rewards, REWARDS), params.pairs), out, PAIRS)


if __name__ == "__main__":
    run(main)
