"""Train a tiny Llama with the Trainer of transformers, on the bytes of Python's standard library.

python train_llama.py --width 32 --steps 64 --lr 0.01 --seed 0 --out /tmp/llama

A step is 512 tokens. The learning rate rises during the first tenth of the steps and then falls linearly to
zero. The folder --out gets what Trainer writes, among it eval_results.json with the loss on held-out text.
"""

import argparse
import hashlib
import sysconfig
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

CONTEXT, BATCH, HEAD_SIZE, LAYERS, HELD_OUT_SEQUENCES = 64, 8, 16, 2, 256


class ByteSequences(torch.utils.data.Dataset):
    """Text cut into sequences of CONTEXT bytes; a token is a byte."""

    def __init__(self, text: bytes) -> None:
        length = len(text) - len(text) % CONTEXT
        self.sequences = torch.frombuffer(bytearray(text[:length]), dtype=torch.uint8).view(-1, CONTEXT)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.sequences[index].long()
        return {"input_ids": tokens, "labels": tokens}


def read_texts() -> tuple[bytes, bytes]:
    """The standard library's modules for training; one in sixteen, by a hash of its name, is held out."""
    train, held_out = [], []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        bucket = hashlib.sha256(path.name.encode()).digest()[0] % 16
        (held_out if bucket == 0 else train).append(path.read_bytes())
    return b"".join(train), b"".join(held_out)[: HELD_OUT_SEQUENCES * CONTEXT]


def make_model(width: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // HEAD_SIZE,
        max_position_embeddings=CONTEXT,
    )
    return LlamaForCausalLM(config)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny Llama with the Trainer of transformers.")
    parser.add_argument("--width", type=int, required=True, help=f"a multiple of {HEAD_SIZE}")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="folder for checkpoints and eval_results.json")
    parser.add_argument("--resume", metavar="CHECKPOINT", help="a folder checkpoint-STEP to go on from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_seed(options.seed)
    arguments = TrainingArguments(
        output_dir=options.out,
        max_steps=options.steps,
        learning_rate=options.lr,
        seed=options.seed,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=HELD_OUT_SEQUENCES,
        optim="adamw_torch",
        adam_beta2=0.95,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        save_steps=200,
        save_total_limit=1,
        use_cpu=True,
    )
    text, held_out = map(ByteSequences, read_texts())
    trainer = Trainer(make_model(options.width), arguments, None, text, held_out)
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
