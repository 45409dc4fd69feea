#!/usr/bin/env bash
# local_slurm.sh - a throw-away REAL Slurm (slurmctld + slurmd's + munged) on one machine,
# without systemd, cgroups, accounting database or network, so that CI can `sbatch` the
# project's own batch scripts.
#
#   local_slurm.sh install                 apt-get install the Debian/Ubuntu packages (root)
#   local_slurm.sh start  DIR CLUSTER      start in DIR (created); no-op if already up
#   local_slurm.sh env    DIR              print the exports a client needs: eval "$(... env DIR)"
#   local_slurm.sh stop   DIR              cancel jobs, stop our daemons (by pid), keep logs
#
# CLUSTER: a file of NodeName=/PartitionName= lines.  Each NodeName line describes ONE node, and may carry
# Gres=gpu:TYPE:N; gres.conf, ports and addresses are generated.  No GPU is needed: the devices are links to
# /dev/null. Slurm is told to believe the core and memory sizes, and NOTHING enforces them.
#
# Knobs (environment), all optional:
#   LOCAL_SLURM_KILL_WAIT=10      seconds between SIGTERM and SIGKILL (Slurm's default: 30)
#   LOCAL_SLURM_REQUEUE_DELAY=5   seconds a requeued job waits       (Slurm's default: 120)
#   LOCAL_SLURM_REQUIRE_NODES=0   1: reject jobs without --nodes, as reported for Iridis X
#   LOCAL_SLURM_PROCTRACK=        cgroup | pgid (default: cgroup where we may, else pgid)
#   LOCAL_SLURM_WAIT=40           bound, in seconds, on every wait in start/stop
set -euo pipefail
export LC_ALL=C
umask 022
PATH=$PATH:/usr/sbin:/sbin

KILL_WAIT=${LOCAL_SLURM_KILL_WAIT:-10}
REQUEUE_DELAY=${LOCAL_SLURM_REQUEUE_DELAY:-5}
REQUIRE_NODES=${LOCAL_SLURM_REQUIRE_NODES:-0}
WAIT=${LOCAL_SLURM_WAIT:-40}

die() { echo "local_slurm: $*" >&2; exit 1; }
say() { echo "local_slurm: $*" >&2; }

# ---- helpers

abs_dir() { [[ -n ${1:-} ]] || die "which DIR?"; mkdir -p "$1"; (cd "$1" && pwd -P); }

# A pid counts as ours only if it still is the process whose start time we noted.
# field 22 of /proc/PID/stat, counted after the command name
start_time() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; awk "{print \$20}" <<< "$s"; }
note_pid()   { echo "$2 $(start_time "$2")" > "$D/pids/$1"; }          # note_pid NAME PID
alive() {                                                              # alive NAME
  local pid st; [[ -s $D/pids/$1 ]] || return 1
  read -r pid st < "$D/pids/$1" || return 1
  [[ $(start_time "$pid" || true) == "$st" ]] || return 1
  [[ $(awk '/^State:/{print $2}' "/proc/$pid/status" 2>/dev/null) != Z ]]
}
pid_of() { cut -d' ' -f1 "$D/pids/$1"; }

until_ok() { # until_ok SECONDS COMMAND...   poll every 0.1 s, bounded
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do (( SECONDS < end )) || return 1; sleep 0.1; done
}
gone() { ! alive "$1"; }

stop_one() { # stop_one NAME : TERM, bounded wait, KILL, only if it is ours
  alive "$1" || { rm -f "$D/pids/$1"; return 0; }
  local pid; pid=$(pid_of "$1")
  kill -TERM "$pid" 2>/dev/null || true
  until_ok 10 gone "$1" || { say "$1 ($pid) ignored SIGTERM, killing"; kill -KILL "$pid" 2>/dev/null || true; until_ok 5 gone "$1" || true; }
  rm -f "$D/pids/$1"
}

port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
pick_ports() { # pick_ports N : N consecutive free ports below the ephemeral range
  local n=$1 base i tries=0
  while (( tries++ < 60 )); do
    base=$(( 12000 + (RANDOM % 15000) ))
    for ((i = 0; i < n; i++)); do port_free $((base + i)) || continue 2; done
    echo "$base"; return
  done
  die "no free ports"
}

# proctrack/cgroup is what clusters use, and it matters: a non-KILL signal then reaches only the
# batch shell and srun's tasks, not what the batch shell started. Without a writable v1 freezer
# (or root) fall back on process groups, where everything in the group gets the signal.
CGROUP=${LOCAL_SLURM_CGROUP_ROOT:-/sys/fs/cgroup}
pick_proctrack() {
  local probe=$CGROUP/freezer/local_slurm_probe.$$
  if [[ -n ${LOCAL_SLURM_PROCTRACK:-} ]]; then echo "$LOCAL_SLURM_PROCTRACK"
  elif [[ -d $CGROUP/freezer ]] && mkdir "$probe" 2>/dev/null && [[ -w $probe/cgroup.procs ]]; then rmdir "$probe"; echo cgroup
  else rmdir "$probe" 2>/dev/null || true
    say "no cgroup v1 freezer: proctrack/pgid (SIGTERM also reaches the batch shell's children; setsid escapes)"; echo pgid
  fi
}

launch() { # launch NAME COMMAND...  : in its own session, output to log, pid noted
  local name=$1; shift
  setsid "$@" </dev/null >>"$D/log/$name.out" 2>&1 9>&- &
  note_pid "$name" $!
}

# ---- install

PACKAGES="slurmctld slurmd slurm-client munge"
cmd_install() {
  if command -v slurmctld slurmd sbatch munged >/dev/null; then say "already installed: $(slurmctld -V)"; return; fi
  [[ $(id -u) == 0 ]] || die "install needs root"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # policy-rc.d: do not let the packages start system-wide daemons
  local policy=/usr/sbin/policy-rc.d made=
  if [[ ! -e $policy ]]; then printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; made=1; fi
  local rc=0
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $PACKAGES </dev/null || rc=$?
  [[ -z $made ]] || rm -f $policy
  (( rc == 0 )) || die "apt-get install failed ($rc)"
  say "installed: $(slurmctld -V)"
}

# ---- start

write_config() {
  local host addr comm me nnodes base proctrack port i=0 line name gres type count spec kind
  host=$(hostname -s); me=$(id -un)
  # Listen on loopback alone if we can. Slurm then binds to what the host name resolves to, and
  # srun is called back on 127.0.0.1, so the name must resolve to exactly that (not to Debian's
  # 127.0.1.1: srun would hang).
  addr=$(getent ahostsv4 "$host" 2>/dev/null | awk 'NR==1{print $1}' || true)
  comm="CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
  if [[ $addr != 127.0.0.1 ]]; then
    say "host name $host is not 127.0.0.1 in /etc/hosts: daemons listen on every interface (munge guards them)"
    addr=127.0.0.1; comm=
  fi
  grep -q '^ *NodeName=' "$D/etc/cluster.conf" || die "no NodeName= line in the cluster file"
  nnodes=$(grep -c '^ *NodeName=' "$D/etc/cluster.conf")
  base=$(pick_ports $((nnodes + 1)))
  proctrack=$(pick_proctrack)
  # only read with proctrack/cgroup: track processes, constrain nothing
  printf '%s\n' CgroupPlugin=cgroup/v1 "CgroupMountpoint=$CGROUP" ConstrainCores=no ConstrainRAMSpace=no \
    ConstrainDevices=no > "$D/etc/cgroup.conf"

  : > "$D/etc/gres.conf"; : > "$D/etc/nodes.conf"; : > "$D/etc/nodes"
  while read -r line; do
    line=${line%%#*}
    case $line in
    NodeName=*)
      i=$((i + 1)); port=$((base + i))
      name=${line#NodeName=}; name=${name%% *}
      [[ $name != *[\[,]* ]] || die "one node a line, please: $name"
      echo "$line NodeAddr=$addr NodeHostname=$host Port=$port State=UNKNOWN" >> "$D/etc/nodes.conf"
      echo "$name" >> "$D/etc/nodes"
      mkdir -p "$D/spool/$name"
      if [[ $line == *Gres=* ]]; then
        gres=${line#*Gres=}; gres=${gres%% *}
        for spec in ${gres//,/ }; do
          IFS=: read -r kind type count <<< "$spec"
          if [[ -z ${count:-} ]]; then count=${type:-1}; type=; fi
          [[ $kind == gpu ]] || die "only gpu gres is supported: $spec"
          mkdir -p "$D/dev/$name"
          # the index in CUDA_VISIBLE_DEVICES comes from the order of these links
          local n first; first=$(find "$D/dev/$name" -type l | wc -l)
          for ((n = first; n < first + count; n++)); do ln -s /dev/null "$D/dev/$name/nvidia$n"; done
          echo "NodeName=$name Name=gpu ${type:+Type=$type} File=$D/dev/$name/nvidia[$first-$((first + count - 1))]" >> "$D/etc/gres.conf"
        done
      fi ;;
    PartitionName=*) echo "$line State=UP" >> "$D/etc/nodes.conf" ;;
    "") ;;
    *) die "cluster file: only NodeName= and PartitionName= lines: $line" ;;
    esac
  done < "$D/etc/cluster.conf"

  cat > "$D/etc/slurm.conf" <<CONF
ClusterName=local
# job ids of two instances never meet: cgroups are named after node, user and job id
FirstJobId=$(( (base - 11999) * 4000 ))
SlurmctldHost=$host($addr)
SlurmctldPort=$base
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job must wait
AuthInfo=socket=$D/run/munge.socket,cred_expire=$REQUEUE_DELAY
$comm
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides,l3cache_as_socket
# nothing that needs a database, a mailer or name resolution
ProctrackType=proctrack/$proctrack
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
MailProg=$D/etc/mail
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,bf_continue,sched_interval=2,sched_min_interval=100000,batch_sched_delay=0,default_queue_depth=1000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ALL
JobRequeue=1
MaxArraySize=10001
DefMemPerCPU=2000
KillWait=$KILL_WAIT
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=60
ReturnToService=2
UnkillableStepTimeout=60
$( (( REQUIRE_NODES )) && echo "JobSubmitPlugins=lua" )
Include $D/etc/nodes.conf
CONF

  cat > "$D/etc/job_submit.lua" <<'LUA'
function slurm_job_submit(job, parts, uid)
  if job.min_nodes == slurm.NO_VAL or job.min_nodes == nil then
    slurm.log_user("No node count: this cluster wants --nodes")
    return slurm.ERROR
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job, rec, parts, uid) return slurm.SUCCESS end
return slurm.SUCCESS
LUA
  # --mail-type/--mail-user: keep a line instead of sending
  # shellcheck disable=SC2016
  printf '#!/bin/sh\necho "$(date +%%FT%%T) $*" >> "%s"\ncat >/dev/null\n' "$D/log/mail.log" > "$D/etc/mail"
  chmod +x "$D/etc/mail"
}

nodes_ready() {
  local s; s=$(sinfo -h -N -o '%T' 2>/dev/null) || return 1
  [[ -n $s ]] && ! grep -qvE '^(idle|mixed|allocated|completing)$' <<< "$s"
}

cmd_start() {
  D=$(abs_dir "${1:-}"); local cluster=${2:?which cluster file?} node
  command -v slurmctld slurmd sbatch munged >/dev/null || die "Slurm is not installed: $0 install"
  # unix sockets live below DIR and their paths are limited to 108 bytes
  (( ${#D} <= 55 )) || die "DIR is too long (${#D} > 55 characters) for unix sockets: $D"
  [[ $D != *[[:space:]]* ]] || die "no blanks in DIR, please"
  mkdir -p "$D"/{etc,run,log,state,spool,pids,munge}
  chmod 755 "$D" "$D/run"; chmod 700 "$D/munge"
  exec 9> "$D/lock"; flock -w "$WAIT" 9 || die "another start/stop holds $D/lock"
  export SLURM_CONF=$D/etc/slurm.conf

  if [[ -s $SLURM_CONF ]] && all_alive && nodes_ready; then say "already up in $D"; return; fi
  stop_all   # leftovers of an earlier, half dead instance of this same DIR
  rm -rf "${D:?}/state" "${D:?}/spool" "${D:?}/dev" "${D:?}/run"; mkdir -p "$D"/{state,spool,dev,run}

  cat "$cluster" > "$D/etc/cluster.conf"
  write_config
  trap 'rc=$?; (( rc == 0 )) || { say "start failed; logs in $D/log"; tail -n 5 "$D"/log/*.log "$D"/log/*.out >&2 || true; stop_all; }' EXIT

  [[ -s $D/munge/key ]] || (umask 077; head -c 1024 /dev/urandom > "$D/munge/key")
  chmod 600 "$D/munge/key"
  launch munged munged --foreground --force --key-file="$D/munge/key" --socket="$D/run/munge.socket" \
    --pid-file="$D/munge/pid" --log-file="$D/munge/log" --seed-file="$D/munge/seed" --num-threads=2
  until_ok "$WAIT" munge -n -S "$D/run/munge.socket" || die "munged did not come up"

  launch slurmctld slurmctld -D -c -f "$SLURM_CONF"
  until_ok "$WAIT" scontrol ping || die "slurmctld did not come up"
  while read -r node; do launch "slurmd-$node" slurmd -D -N "$node" -f "$SLURM_CONF"; done < "$D/etc/nodes"
  until_ok "$WAIT" nodes_ready || { sinfo -N -l >&2 || true; sinfo -R >&2 || true; die "nodes are not idle"; }
  trap - EXIT
  say "up in $D: $(sinfo -h -o '%P(%G)' | tr '\n' ' ')"
}

all_alive() {
  local node
  alive munged && alive slurmctld || return 1
  while read -r node; do alive "slurmd-$node" || return 1; done < "$D/etc/nodes"
}

# ---- stop

# slurmstepd's that outlived their daemons (only after a crash or a kill -9): they inherit our
# SLURM_CONF. They and everything below them are killed.
descendants() { # descendants PID
  local c children; children=$(cat "/proc/$1/task/$1/children" 2>/dev/null) || return 0
  for c in $children; do echo "$c"; descendants "$c"; done
}
stop_steps() {
  local p pid
  for p in /proc/[0-9]*; do
    [[ $(cat "$p/comm" 2>/dev/null) == slurmstepd ]] || continue
    grep -qzxF "SLURM_CONF=$D/etc/slurm.conf" "$p/environ" 2>/dev/null || continue
    pid=${p#/proc/}
    say "killing left-over slurmstepd $pid and its jobs"
    # shellcheck disable=SC2046
    kill -KILL $(descendants "$pid") "$pid" 2>/dev/null || true
  done
}

drop_cgroups() { # the empty v1 directories slurmd leaves, unless another slurmd of that name runs
  local node p dir
  [[ -s $D/etc/nodes ]] || return 0
  while read -r node; do
    for p in /proc/[0-9]*/cmdline; do
      { tr '\0' ' ' < "$p"; } 2>/dev/null | grep -q "^slurmd -D -N $node " && continue 2
    done
    dir=$CGROUP/freezer/slurm_$node
    [[ ! -d $dir ]] || find "$dir" -depth -type d -exec rmdir {} \; 2>/dev/null || true
  done < "$D/etc/nodes"
}

no_jobs() { [[ -z $(squeue -h -t PD,R,CG,S,CF 2>/dev/null) ]]; }

stop_all() {
  local f
  export SLURM_CONF=$D/etc/slurm.conf
  if [[ -s $SLURM_CONF ]] && alive slurmctld; then
    if ! no_jobs; then
      timeout 10 scancel --state=PENDING --user="$(id -un)" 2>/dev/null || true
      timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
      until_ok $((KILL_WAIT + 10)) no_jobs || say "some jobs did not end in time"
    fi
  fi
  for f in "$D"/pids/slurmd-*; do [[ -e $f ]] && stop_one "${f##*/}"; done
  stop_one slurmctld
  stop_steps
  stop_one munged
  drop_cgroups
  return 0
}

cmd_stop() {
  [[ -d ${1:-} ]] || { say "nothing at ${1:-?}"; return 0; }
  D=$(abs_dir "$1"); mkdir -p "$D/pids"
  exec 9> "$D/lock"; flock -w "$WAIT" 9 || die "another start/stop holds $D/lock"
  stop_all
  say "stopped $D"
}

# ---- env

cmd_env() {
  D=$(abs_dir "${1:-}"); echo "export SLURM_CONF='$D/etc/slurm.conf'"
  # exported functions travel into the job with sbatch's default --export=ALL, as Lmod's do
  echo "module() { echo \"module \$*\" >> '$D/log/module.log'; }; export -f module"
}

cmd=${1:-}; shift || true
case $cmd in
  install|start|stop|env) "cmd_$cmd" "$@" ;;
  *) sed -n '2,/^set -/p' "$0" | sed '$d;s/^# \{0,1\}//'; exit 2 ;;
esac
