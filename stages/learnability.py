"""One teacher's responses + the untuned student -> their learnability."""

from persyn.learnability import score_learnability
from persyn.models import Student
from persyn.schemas import LEARNABILITY, PROMPTS, RESPONSES, read_table, write_table
from stages import read_params, run


def main(prompts: str, responses: str, out: str) -> None:
    student = Student(**read_params("student", Student))
    tables = read_table(prompts, PROMPTS), read_table(responses, RESPONSES)
    speed = read_params("speed.learnability", score_learnability)
    write_table(score_learnability(*tables, student, **speed), out, LEARNABILITY)


if __name__ == "__main__":
    run(main)
