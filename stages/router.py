"""Pairs -> the router, measured on held-out parallel prompts."""

from persyn.files import write_json, write_text
from persyn.router import fit_router
from persyn.router.settings import Settings
from persyn.schemas import PAIRS, PROMPTS, REWARDS, read_table
from persyn.training.monitors import Live
from stages import read_params, run


def main(prompts: str, rewards: str, pairs: str, out: str, metrics: str, reliability: str, live: str) -> None:
    tables = read_table(prompts, PROMPTS).filter(parallel=True), read_table(rewards, REWARDS), read_table(pairs, PAIRS)
    settings, teachers = Settings(**read_params("router", Settings)), read_params("teachers")
    anchored = [name for name, teacher in teachers.items() if teacher.get("anchors") is not None]
    speed = read_params("speed").get("router") or {}
    knobs = speed.get("device_batch_size"), Live(live, speed.get("report_to", "dvclive"))
    router, card, bins = fit_router(*tables, list(teachers), settings, anchored, *knobs)
    router.save(out)
    write_json(card, metrics)
    write_text(bins.write_csv(), reliability)


if __name__ == "__main__":
    run(main, launched="router")
