"""Pairs -> the router, measured on held-out parallel prompts."""

import polars as pl

from persyn.router import fit_router, save_router
from persyn.schemas import PAIRS, PROMPTS, REWARDS, read_table, write_json
from stages import read_params, run


def main(prompts: str, rewards: str, pairs: str, out: str, metrics: str) -> None:
    parallel = read_table(prompts, PROMPTS).filter(pl.col("parallel"))
    tables = parallel, read_table(rewards, REWARDS), read_table(pairs, PAIRS)
    router, tokenizer, measured = fit_router(
        *tables, list(read_params("teachers")), **read_params("router", fit_router)
    )
    save_router(router, tokenizer, out)
    write_json(measured, metrics)


if __name__ == "__main__":
    run(main)
