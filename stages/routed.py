"""Routes -> the responses of the chosen teachers, and of the next ones where those fall short of dataset.require."""

from persyn.project.params import JUDGE, read_params
from persyn.quality import QualitySpeed, score_quality
from persyn.routed import Asking, Retries, read_asked, sink_routed
from persyn.schemas import parts_folder
from persyn.store import store_folder
from stages import run


def main(prompts: str, routes: str, responses: str, out: str) -> None:
    params = read_params()
    teachers, folder, settings = params.teachers, store_folder(), params.dataset
    speed = QualitySpeed(params.speed_of(JUDGE), params.speed.reward_model)
    scoring = folder, params.quality, speed, params.budget, teachers
    retries = Retries(
        settings.retries,
        settings.require,
        settings.over(params.defects),
        lambda asked, written: score_quality(asked, written, *scoring),
    )
    parts = read_asked(prompts, responses, list(teachers), params.quality.at_once if settings.retries else None)
    each = {name: params.speed_of(name) for name in teachers}
    limits = {"budget": params.budget, "max_error_share": params.responses.max_error_share}
    with parts_folder(out) as scratch:
        asking = Asking(parts, teachers, params.licenses, folder, each, limits, scratch)
        sink_routed(asking, routes, out, retries)


if __name__ == "__main__":
    run(main)
