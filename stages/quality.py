"""One teacher's responses -> their quality."""

from persyn.project.params import JUDGE, read_params
from persyn.quality import QualitySpeed, score_quality
from persyn.schemas import PARALLEL, PROMPTS, QUALITY, RESPONSES, read_table, write_table
from persyn.store import store_folder
from stages import run


def main(name: str, prompts: str, responses: str, out: str) -> None:
    params = read_params()
    asked, written = read_table(prompts, PROMPTS, PARALLEL), read_table(responses, RESPONSES)
    speed = QualitySpeed(params.speed_of(JUDGE), params.speed.reward_model)
    scoring = params.quality, speed, params.budget, {name: params.named("teachers", name)}
    quality = score_quality(asked, written, store_folder(), *scoring)
    write_table(quality, out, QUALITY)


if __name__ == "__main__":
    run(main)
