#!/usr/bin/env bash
# A study on a real Slurm, one node on this machine: jobs that are cancelled, killed, requeued and
# preempted, a launcher that is closed and called again (tests/slurm_session.py).
#
#   bash tests/slurm.sh
#
# Installs Debian's packages by apt, as root in a container without systemd (elsewhere they would
# start services); exits with 77 where there is no Slurm. Its own daemons have their configuration,
# ports and files in a temporary folder and end with it. Needs .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
skip() { echo "skipped: $*"; exit 77; }

export PATH=$PATH:/usr/sbin
if ! command -v slurmctld slurmd munged sbatch >/dev/null; then
    [ "$(id -u)" = 0 ] || skip "no Slurm, and only root can install it"
    command -v apt-get >/dev/null || skip "no Slurm and no apt to install it with"
    [ ! -d /run/systemd/system ] || skip "no Slurm; its packages would start services here"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq &&
        apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
    } >/dev/null 2>&1 || skip "apt cannot install Slurm"
fi
[ "$(id -u)" = 0 ] || skip "slurmd runs as root"

folder=$(mktemp -d)
stop() {
    if scancel --user root --signal KILL 2>/dev/null; then
        for _ in $(seq 50); do [ -z "$(squeue -h)" ] && break; sleep 0.2; done
    fi
    for name in slurmd slurmctld munged; do
        pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap stop EXIT

host=$(hostname -s)
ports=$(.venv/bin/python - <<'PYTHON'
import socket

free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(server.getsockname()[1] for server in free))
PYTHON
)
head -c 128 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
mkdir "$folder/state" "$folder/spool"
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=3
NodeName=$host NodeAddr=127.0.0.1 CPUs=6 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=60 State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munge.seed" \
    --log-file="$folder/munged.log"
slurmctld -c 2>/dev/null
idle() {
    for _ in $(seq 30); do
        sinfo -h -o %T 2>/dev/null | grep -q '^idle$' && return
        sleep 0.2
    done
    return 1
}
up=
for plugin in disabled cgroup/v1 cgroup/v2; do  # what this version knows and this machine has
    echo "CgroupPlugin=$plugin" >"$folder/cgroup.conf"
    if slurmd -c 2>/dev/null && idle; then up=$plugin; break; fi
done
if [ -z "$up" ]; then
    tail -n 5 "$folder"/slurm*.log
    exit 1
fi
.venv/bin/python tests/slurm_session.py "$folder"
