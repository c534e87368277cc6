"""Pairs -> the router, measured on held-out parallel prompts."""

import logging

from persyn.files import write_json, write_text
from persyn.project.params import read_params
from persyn.router import fit_router
from persyn.router.worth import worth_text
from persyn.schemas import PAIRS, PARALLEL, PROMPTS, REWARDS, read_table
from persyn.training.monitors import Live
from stages import run

logger = logging.getLogger("persyn.stages.router")


def main(prompts: str, rewards: str, pairs: str, out: str, metrics: str, reliability: str, live: str) -> None:
    params = read_params()
    speed = params.speed.router
    tables = read_table(prompts, PROMPTS, PARALLEL), read_table(rewards, REWARDS), read_table(pairs, PAIRS)
    knobs = speed.device_batch_size, Live(live, speed.report_to)
    router, card, bins = fit_router(*tables, list(params.pool), params.router, params.anchored, *knobs)
    router.save(out)
    write_json(card, metrics)
    write_text(bins.write_csv(), reliability)
    for line in worth_text(card):
        logger.info(line)


if __name__ == "__main__":
    run(main, launched="router")
