#!/bin/bash
# All seven experiments, three seeds each, as one job array; called again, only what is unfinished and not queued.
#
#   slurm/reproduce.sh --dry-run --nodes=2 --gpus-per-node=8 --cpus-per-task=96 --time=24:00:00 \
#       scale=imagenet data.root=/shared/imagenet
#
# prints every command, how far it has come and the GPU-hours it still needs; without --dry-run it submits.
#
#   --dry-run                  submit nothing
#   --seeds=0,1,2              which seeds
#   --experiments=A,B          which experiments (all)
#   --images-per-second=N      what one GPU trains, for the GPU-hours; else what a run of the plan has measured
#   --at-once=N                so many array elements at a time (all)
#   --NAME=VALUE               anything else goes to sbatch
#   name=value                 goes to train.py, for every run
#
# PYTHON, STAGE, ... are as in train.sbatch. Exit status: 0, also if nothing was left to do; 2 for bad input.
set -uo pipefail
export LC_ALL=C # a point in numbers
refuse() { echo "error: $*" >&2; exit 2; }

dry='' nodes=1 tasks='' gpus='' at_once='' planning=() sbatch=() overrides=()
for argument in "$@"; do
    case $argument in
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        --dry-run) dry=1 ;;
        --at-once=*) at_once=%${argument#*=} ;;
        --seeds=* | --experiments=* | --images-per-second=*) planning+=("$argument") ;;
        --nodes=* | --ntasks-per-node=* | --gpus-per-node=*)
            sbatch+=("$argument") number=${argument##*[=:]} # --gpus-per-node=h100:8
            case $argument in --nodes=*) nodes=$number ;; --nt*) tasks=$number ;; *) gpus=$number ;; esac ;;
        --array=* | --job-name=*) refuse "$argument: the array and its name are what this script makes" ;;
        --*) sbatch+=("$argument") ;;
        -*) refuse "$argument: write options of sbatch as --name=value" ;;
        *) overrides+=("$argument") ;;
    esac
done
cd "$(dirname "$0")/.." || exit
if [ -n "${PYTHON-}" ]; then
    read -ra python <<<"$PYTHON"
elif [ -x .venv/bin/python ]; then
    python=(.venv/bin/python)
else
    python=(python)
fi
ranks=${tasks:-${gpus:-1}} # of a node, as train.sbatch counts them
[[ $nodes$ranks =~ ^[0-9]+$ ]] && planning+=("--ranks=$((nodes * ranks))") # --nodes=2-4: not known yet
plan=$("${python[@]}" slurm/plan.py "${planning[@]}" -- "${overrides[@]}") || exit

# The array's name says where its runs are: elements of an earlier call are found by it.
name=$(sed -n '1s/^# //p' <<<"$plan") origin=$(sed -n '$s/^# //p' <<<"$plan")
if ! queued=$(squeue --array --noheader --user="$(id -un)" --name="$name" --format='%K %T %F_%K' 2>&1); then
    [ -n "$dry" ] || refuse "no SLURM answers here, submit from a login node of the cluster; squeue: ${queued%%$'\n'*}"
    echo "no SLURM answers here: what is queued is not known"
    queued=''
fi

printf '%-24s %9s  %s\n' state GPU-hours command
elements='' left=0 sum=0 lines=()
while IFS=$'\t' read -r index state progress hours folder arguments; do
    job=$(awk -v wanted="$index" '$1 == wanted { print tolower($2) " as " $3; exit }' <<<"$queued")
    if [ "$state" = finished ]; then
        hours=-
    elif [ -n "$job" ]; then
        state=$job
    else
        lines[index]=$arguments elements+=,$index left=$((left + 1)) sum="$sum + $hours"
    fi
    [ "$state" = finished ] || [ "$state" = new ] || state="$state, $progress"
    [[ $hours = [-?] ]] || hours=$(printf %.1f "$hours")
    printf '%-24s %9s  %s\n' "$state" "$hours" "python train.py $arguments"
done < <(grep -v '^#' <<<"$plan")
echo "$origin"
[ "$left" -gt 0 ] || { echo "nothing to submit"; exit 0; }

file=runs/slurm/$name-$(date +%Y%m%d-%H%M%S).commands # line index + 1 has the arguments of element index
command=(sbatch --parsable --job-name="$name" --array="${elements#,}$at_once" --output="runs/slurm/%x-%A_%a.log"
    "${sbatch[@]}" slurm/train.sbatch "@$file")
total=$(awk "BEGIN { printf \"%.1f\", $sum }" 2>/dev/null) || total='?'
echo "to submit: $left runs, $total GPU-hours: ${command[*]}"
[ -z "$dry" ] || exit 0
mkdir -p runs/slurm || exit
for ((index = 0; index <= ${elements##*,}; index++)); do
    echo "${lines[index]-}"
done >"$file"
job=$("${command[@]}") || exit
echo "submitted: job ${job%%;*}; logs: runs/slurm/$name-${job%%;*}_*.log; this command again tells and repairs"
