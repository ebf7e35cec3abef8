#!/usr/bin/env bash
# BERT-base into 6 and 3 layers on all of SQuAD: all methods on one schedule, three seeds. Run it in an environment with
# itrd_nlp. It prints an estimate first; repeat the command to resume. On several GPUs of one machine:
#   LAUNCH="accelerate launch -m itrd_nlp.cli" bash scripts/reproduce_squad.sh --per_device_train_batch_size 8 \
#     --teacher_training.per_device_train_batch_size 8 --gather_across_ranks true
# Arguments are passed to every run; SEEDS, STUDENTS, METHODS and OUTPUT set what runs and where. DRY=1 takes two steps of each
# run at the same shapes, with random weights and generated questions: no Hub, a few minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra methods <<< "${METHODS:-kd distilbert textbrewer crd wcord minilmv2 srd vkd itrd-corr itrd-both itrd}"
read -ra students <<< "${STUDENTS:-t6 t3}"
read -ra seeds <<< "${SEEDS:-0 1 2}"
read -ra launch <<< "${LAUNCH:-itrd}"
output=${OUTPUT:-runs/reproduce${DRY:+-dry}}
python scripts/estimate.py --seeds "${#seeds[@]}" --students "${students[@]}" --methods "${methods[@]}"
for student in "${students[@]}"; do
  dry=()
  if [ -n "${DRY:-}" ]; then
    python scripts/dry_data.py "$output/data"
    teacher='{model_type: bert}'
    dry=(--teacher "${DRY_TEACHER:-$teacher}" --tokenizer "$output/data" --max_steps 2 --latency false
      --teacher_training '{max_steps: 1, per_device_train_batch_size: 8}' --per_device_train_batch_size 8
      --student "{from: teacher, layers: \"first:${student#t}\"}" --save_strategy no --shared_dir "$output/shared"
      --train_file "$output/data/train.jsonl" --validation_file "$output/data/validation.jsonl" --teacher_cache off)
  fi
  recipes=("${methods[@]/#/squad/$student-}")
  "${launch[@]}" compare "${recipes[@]}" --seeds "${seeds[@]}" --output_dir "$output/$student" \
    ${dry[@]+"${dry[@]}"} "$@"  # bash 3 takes an empty list for an unset one
  records=()
  for method in "${methods[@]}"; do
    for seed in "${seeds[@]}"; do records+=("$output/$student/$student-$method/seed-$seed/record.json"); done
  done
  itrd report "${records[@]}" --comparison --output "$output/$student.md"
done
