#!/usr/bin/env bash
# The workflow on Slurm, tried on this machine: Debian's slurm-wlm and munge as a cluster of one node, a toy grid through
# snakemake's Slurm executor, its table checked, the daemons stopped. About 5 minutes on 2 cores; needs root and apt.
#
#   bash scripts/try_slurm.sh [run|cell]        what one Slurm job is; default run
#
# slurm.conf, the munge key, sockets and logs lie in a folder of their own, which is kept if something fails; all that
# is touched besides is a link, /etc/slurm/slurm.conf, for the executor's srun drops SLURM_CONF. No cgroups
# (proctrack/linuxproc, task/none) and no accounting: squeue tells what became of a job.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
unit=${1:-run}
case $unit in
    run | cell) ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
    *) echo "error: $unit is no job of try_slurm.sh, expected run or cell" >&2; exit 1 ;;
esac
[ "${DRY_RUN:-}" = 1 ] && { echo "a cluster of this machine for: python scripts/flow.py ... --slurm --by $unit"; exit; }
[ "$(id -u)" = 0 ] || { echo "error: try_slurm.sh needs root, for apt-get and slurmd" >&2; exit 1; }
conf=/etc/slurm/slurm.conf
[ ! -e $conf ] || { echo "error: $conf is there: use scripts/flow.py --slurm on this cluster" >&2; exit 1; }
. "$root/scripts/setup.sh"
setup requirements.txt tests/requirements.txt
if ! command -v slurmctld slurmd munged sbatch > /dev/null; then
    echo "Installing Debian's slurm-wlm and munge"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge > /dev/null
fi

place=$(mktemp -d /tmp/try_slurm.XXXXXX)
chmod 755 "$place"
mkdir "$place/state" "$place/spool"
export DATA=$place/data OUTPUT=$place/output
node=$(hostname -s)
daemons=()
# shellcheck disable=SC2317  # called by the trap
stop() {
    status=$?
    squeue --noheader --format=%i 2> /dev/null | xargs -r scancel || true
    for pid in "${daemons[@]}"; do kill "$pid" 2> /dev/null || true; done
    wait
    rm -f $conf
    if [ $status = 0 ]; then rm -rf "$place"; else echo "failed: see $place" >&2; fi
}
trap stop EXIT

cat > "$place/slurm.conf" << CONF
ClusterName=try
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket
SlurmUser=root
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
MinJobAge=3600
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
PartitionName=toy Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
ln -sfn "$place/slurm.conf" $conf
dd if=/dev/urandom of="$place/munge.key" bs=128 count=1 status=none
chmod 400 "$place/munge.key"

start() { # a daemon in the foreground, as a child of this script
    "$@" > "$place/$(basename "$1").out" 2>&1 &
    daemons+=($!)
}
start munged --foreground --force --key-file="$place/munge.key" --socket="$place/munge.socket" \
    --pid-file="$place/munged.pid" --log-file="$place/munged.log" --seed-file="$place/munged.seed"
for _ in $(seq 50); do [ -S "$place/munge.socket" ] && break; sleep 0.2; done
start slurmctld -D -f "$place/slurm.conf"
start slurmd -D -f "$place/slurm.conf" -N "$node"
for _ in $(seq 150); do [ "$(sinfo --noheader --format=%t 2> /dev/null)" = idle ] && break; sleep 0.2; done
sinfo
[ "$(sinfo --noheader --format=%t)" = idle ] || { echo "error: the node is not idle" >&2; exit 1; }

cat > "$place/table.yaml" << TABLE
protocol: base2new
methods: [CoOp]
presets: [paper]
datasets: {toy: [toy_shapes]}
seeds: [1]
TABLE
flow() { "$python" "$root/scripts/flow.py" "$place/table.yaml" --set OPTIM.MAX_EPOCH 1 --by "$unit" "$@"; }
flow --slurm --partition toy --workers 2 --threads 1 --mem-mb 3000 --runtime 60 -- \
    --slurm-status-command squeue --slurm-init-seconds-before-status-checks 5
squeue --states=all --format="%.6i %.40j %.9T %.20S %.20e"
flow --dry-run | tail -n 3
grep -q "CoOp_LMC (paper" "$OUTPUT/tables/base2new.csv" || { echo "error: no table" >&2; exit 1; }
jobs=$(squeue --noheader --states=completed --format=%i | wc -l)
[ "$jobs" -ge 1 ] || { echo "error: Slurm has run no job" >&2; exit 1; }
echo "Slurm has run $jobs jobs; the table is there"
