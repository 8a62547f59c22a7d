"""The files that configure the Slurm of the tests."""

from pathlib import Path

NODES = ("n1", "n2")
GPUS = ("null", "zero")  # a character device passes for a GPU; a file leaves CUDA_VISIBLE_DEVICES unset
CONTROLLER_PORT, DATABASE_PORT, ACCOUNTING_PORT, FIRST_NODE_PORT = 26817, 23306, 26819, 27001


def slurm_conf(folder: Path, host: str) -> str:
    """`slurm.conf`; where a value matters to the tests, a comment says why."""
    return f"""
ClusterName=hyperp
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={CONTROLLER_PORT}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MailProg=/bin/true
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired: 5 s in place of 2 minutes.
AuthInfo=socket={folder}/run/munge,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Without control groups, polling is what enforces a memory limit.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Otherwise a job that asks for no memory takes a node's whole.
DefMemPerCPU=512
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
# More cores than the machine has, so that several tiny jobs share it.
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Sends the signal of `--signal` to a job that is preempted as well.
SlurmctldParameters=preempt_send_user_signal
# One more than the largest index of an array.
MaxArraySize=1000
ReturnToService=2
KillWait=5
# A busy machine may keep a daemon waiting for half a minute; a node that is down loses its jobs.
SlurmdTimeout=60
MinJobAge=300
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ACCOUNTING_PORT}
AccountingStoragePass={folder}/run/munge
AccountingStorageTRES=gres/gpu
{_node_lines(host)}
PartitionName=main Nodes=ALL Default=YES PriorityTier=5 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=10
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def _node_lines(host: str) -> str:
    size = f"CPUs=4 RealMemory=8000 Gres=gpu:{len(GPUS)}"
    where = f"NodeHostname={host} NodeAddr=127.0.0.1"
    return "\n".join(
        f"NodeName={name} {where} Port={FIRST_NODE_PORT + i} {size}" for i, name in enumerate(NODES)
    )


def slurmdbd_conf(folder: Path, host: str) -> str:
    """`slurmdbd.conf`: without accounting nobody can say why a job of yesterday died."""
    return f"""
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ACCOUNTING_PORT}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={DATABASE_PORT}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


def mariadb_conf(folder: Path) -> str:
    """Small, and quick rather than durable; slurmdbd asks for the lock timeout."""
    return f"""
[mariadbd]
user=root
datadir={folder}/mysql
socket={folder}/run/mariadb
pid-file={folder}/run/mariadbd.pid
bind-address=127.0.0.1
port={DATABASE_PORT}
innodb_buffer_pool_size=64M
innodb_flush_log_at_trx_commit=0
innodb_lock_wait_timeout=900
performance_schema=OFF
"""
