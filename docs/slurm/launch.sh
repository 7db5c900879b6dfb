#!/usr/bin/env bash
# accelerate launch, below a shell that passes signals to stop on to the trainer:  launch.sh ARGUMENTS OF accelerate launch
#
# Why a shell between: Slurm sends a step's signal to the processes that it started itself (with proctrack/cgroup, which
# most clusters have), not to their children. Were that accelerate's launcher, it would die of USR1 and leave the trainer
# behind. Were it told to ignore USR1, the trainer would never hear of it: it is a child, in a session of its own.
# And a TERM that the launcher passes on is followed by KILL after 30 seconds.
# So the launcher ignores signals, and this shell sends USR1 to the launcher's children: the trainer's processes.
#
# Exit code: the trainer's own, 75 for "stopped and saved; run the same command again", which accelerate would turn into
# 1; or the launcher's, when the trainer did not come to say one.
set -uo pipefail
PIXCELL_EXIT_CODE_FILE=$(mktemp)
export PIXCELL_EXIT_CODE_FILE
trap 'rm -f "$PIXCELL_EXIT_CODE_FILE"' EXIT

# Where TERM reaches the launcher all the same, and when one process of the trainer ends before the others, torch gives
# the others 30 seconds, then kills them. A save of the published network writes 10 GB.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}

# A loader worker keeps up to 256 packed shards of every index key open: 1536 files of the six published keys, and many
# systems allow 1024 unless asked.
ulimit -n "$(ulimit -Hn)"

(
    trap '' USR1 TERM INT # what is ignored stays so over exec; the trainer sets handlers of its own
    exec accelerate launch "$@"
) &
launcher=$!

again=yes
trap 'again=yes; pkill -USR1 -P "$launcher"' USR1 TERM INT
while [ -n "$again" ]; do # a signal ends `wait` before the launcher has ended
    again=
    wait "$launcher"
    code=$?
done

own=$(cat "$PIXCELL_EXIT_CODE_FILE")
exit "${own:-$code}"
