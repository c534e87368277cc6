#!/bin/sh
# Fetch the public files of this profile into data/raw, each from its repository at a pinned commit.
set -eu
cd "$(dirname "$0")/data/raw"
mkdir -p evaluation

get() { # file, repository, commit, path in it
    test -e "$1" || dvc get "https://github.com/$2" "$4" --rev "$3" --out "$1"
}

get gsm8k.jsonl openai/grade-school-math 3101c7d5072418e28b9008a6636bde82a006892c grade_school_math/data/train.jsonl
get evaluation/gsm8k.jsonl openai/grade-school-math 3101c7d5072418e28b9008a6636bde82a006892c grade_school_math/data/test.jsonl
get self_instruct.jsonl yizhongw/self-instruct 0b26ccaa415992100fa32df62d41b994cf928e23 human_eval/user_oriented_instructions.jsonl
get evaluation/ifeval.jsonl josejg/instruction_following_eval 0c495b2f95155e8b10acb919ae283bfb4d5be6e2 instruction_following_eval/data/input_data.jsonl
svamp=689d7ccac74b9983a2ac7cc3b264f441b99e7c53  # has MAWPS and ASDiv-A, too
test -e mawps.jsonl || {
    get mawps.csv arkilpatel/SVAMP $svamp data/cv_mawps/fold0/train.csv
    python -c 'import polars; polars.read_csv("mawps.csv", infer_schema=False).write_ndjson("mawps.jsonl")'
    rm mawps.csv
}
test -e evaluation/asdiv.jsonl || {
    get asdiv-1.csv arkilpatel/SVAMP $svamp data/cv_asdiv-a/fold0/dev.csv  # the two are the whole set
    get asdiv-2.csv arkilpatel/SVAMP $svamp data/cv_asdiv-a/fold0/train.csv
    python -c 'import polars
polars.read_csv("asdiv-*.csv", infer_schema=False).write_ndjson("evaluation/asdiv.jsonl")'
    rm asdiv-1.csv asdiv-2.csv
}
test -e evaluation/svamp.jsonl || {
    get evaluation/svamp.json arkilpatel/SVAMP $svamp SVAMP.json
    python -c 'import json; [print(json.dumps(row)) for row in json.load(open("evaluation/svamp.json"))]' \
        > evaluation/svamp.jsonl
    rm evaluation/svamp.json
}
