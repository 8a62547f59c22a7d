"""A lab's own trainer, for tests: knows nothing of hyperp, learns a small net, saves when it is told to.

    python foreign_trainer.py --lr 0.1 --steps 200 --seed 0 --out FOLDER [--resume FOLDER]

--fault makes it misbehave: raise, exit, nan, silent (no result), deaf (ignores SIGTERM), memory, or orphan
(leaves a process behind). --pause sleeps that many seconds in each step.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--width", type=int, default=8)
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--resume", type=Path)
parser.add_argument("--pause", type=float, default=0.0)
parser.add_argument("--fault", default="")
args = parser.parse_args()

stopping: list[int] = []
signal.signal(
    signal.SIGTERM, signal.SIG_IGN if args.fault == "deaf" else lambda number, _: stopping.append(number)
)
torch.manual_seed(args.seed)
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Linear(4, args.width), torch.nn.Tanh(), torch.nn.Linear(args.width, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=args.lr)
x = torch.randn(64, 4)
y = x.prod(dim=1, keepdim=True)
checkpoint, first = args.out / "checkpoint.pth", 0
if args.resume:
    saved = torch.load(args.resume / checkpoint.name)
    net.load_state_dict(saved["net"])
    first = saved["step"]
print(f"from step {first} as process {os.getpid()} of {os.environ.get('WORLD_SIZE', '1')}", flush=True)
if args.fault == "raise":
    raise RuntimeError("the data are gone")
if args.fault == "exit":
    sys.exit(7)
if args.fault == "memory":
    wanted = [torch.ones(2**26) for _ in range(64)]
if args.fault == "orphan":
    subprocess.Popen(["sleep", "600"])
loss = torch.tensor(float("nan"))
for step in range(first, args.steps):
    loss = torch.nn.functional.mse_loss(net(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1}/{args.steps} loss {loss.item():.4f}", flush=True)
    time.sleep(args.pause)
    if stopping or (step + 1) % 50 == 0:
        torch.save({"net": net.state_dict(), "step": step + 1}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
    if stopping:
        sys.exit(0)
if args.fault != "silent":
    value = float("nan") if args.fault == "nan" else loss.item()
    with (args.out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": args.steps, "val_loss": value}) + "\n")
