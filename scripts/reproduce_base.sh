#!/usr/bin/env bash
# Repeat the study of docs/base.md: a teacher of BERT-base's size, every method at 6 and 3 layers, seeds, questions, int8. It prints
# first how long that took where it was measured; repeat the command to resume, also after a kill. Records replace those in
# scripts/results/base where arguments differ. TEACHER is the pretrained encoder, SQUAD a folder with the train.json and
# validation.json of scripts/split_squad.py, TEST new_wiki of SQuADShifts in SQuAD's layout. Arguments are passed on, e.g.
# --stages t3. Run it in an environment with itrd_nlp; the last stage, deploy, needs `pip install '.[export]'`.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
: "${TEACHER:?the folder of a pretrained encoder}" "${SQUAD:?a folder with train.json and validation.json}" "${TEST:?a test file}"
for name in TEACHER SQUAD TEST; do  # relative to where this is called
  case ${!name} in /*) ;; *) [ ! -e "${!name}" ] || printf -v "$name" '%s' "$PWD/${!name}" ;; esac
done
case ${OUTPUT:-/} in /*) ;; *) OUTPUT=$PWD/$OUTPUT ;; esac
cd "$scripts/.."
python scripts/base_page.py --estimate
python scripts/base.py --output_dir "${OUTPUT:-runs/base}" --teacher "$TEACHER" --train_file "$SQUAD/train.json" \
  --validation_file "$SQUAD/validation.json" --test_file "$TEST" "$@"
python scripts/base_page.py
