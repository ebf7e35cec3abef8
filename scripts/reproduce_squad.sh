#!/usr/bin/env bash
# The SQuAD table of ITRD's poster at full size: BERT-base into 6 and 3 layers, every method, three seeds. Prints what it
# will take first; the same command continues where it stopped. On several GPUs of one machine:
#   LAUNCH="accelerate launch -m itrd_nlp.cli" bash scripts/reproduce_squad.sh --per_device_train_batch_size 8
# Arguments go to every run. SEEDS, STUDENTS and OUTPUT change what runs and where.
set -euo pipefail
cd "$(dirname "$0")/.."
METHODS="kd distilbert textbrewer crd wcord minilmv2 srd vkd itrd-corr itrd-both itrd"
read -ra launch <<< "${LAUNCH:-itrd}"
read -ra seeds <<< "${SEEDS:-0 1 2}"
output=${OUTPUT:-runs/reproduce}
python scripts/estimate.py --seeds "${#seeds[@]}" --students ${STUDENTS:-t6 t3} --methods $METHODS
for student in ${STUDENTS:-t6 t3}; do
  "${launch[@]}" compare $(printf "squad/$student-%s " $METHODS) --seeds "${seeds[@]}" --output_dir "$output/$student" "$@"
  itrd report "$output/$student"/*/*/record.json --comparison --output "$output/$student.md"
done
