"""Trains the demo's policy from random weights: a tokenizer, a tiny Llama, a curriculum.

Looking facts up is learned late, and then all at once. What brings it early: lists to be repeated (every
token of the response is a look-up), facts asked for completely, short documents before long ones, words
of one token, and Muon. The last stage teaches a mixture of good and flawed answers, so that samples
differ in kind and there is something for LongReward to choose between.

    python -m jobs.demo.policy [--out jobs/demo/policy] [--seed 0]
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jobs.demo import task
from lr_ray.config import Training
from lr_ray.training import sft
from lr_ray.training.batch import Example
from lr_ray.training.tokens import Encoder

PAD, END = "<|pad|>", "<|end|>"
SPECIAL = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}"
    "{% if message.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MIXTURE: dict[task.Kind, float] = {"good": 0.5, "wrong": 0.2, "incomplete": 0.18, "off_point": 0.12}
Turns = list[dict[str, str]]

SHORT = task.Shape(facts=(2, 8), distractors=(0, 1), asked=(2, 8))
MIDDLE = task.Shape(facts=(4, 10), distractors=(2, 12), asked=(2, 8))
WHOLE = task.Shape(asked=(2, 10))


def talk(question: str, answer: str | None = None) -> Turns:
    """A conversation of one question and, if it is known, its answer."""
    turns = [{"role": "user", "content": question}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def prompt_of(item: task.Item) -> str:
    """The user's turn, as the loop's default prompt template writes it."""
    return f"{item.context}\n\n{item.question}"


def recall(rng: random.Random, shape: task.Shape, kinds: dict[task.Kind, float] | None = None) -> Turns:
    """A document, a question and a good answer, or one of a kind drawn by weight."""
    item = task.make_item(rng, shape)
    kind = rng.choices(list(kinds), list(kinds.values()))[0] if kinds else "good"
    return talk(prompt_of(item), task.answer_of_kind(kind, item, rng))


def lists_and_few_facts(rng: random.Random) -> Turns:
    """Words to be said again, facts to be said again in another order, or a short document.

    The number of words varies, so that no fixed distance does; in another order, only names lead to values.
    """
    sort = rng.randrange(3)
    if sort == 0:
        text = " ".join(rng.sample(task.NAMES + task.VALUES, rng.randint(3, 24)))
        return talk(text, text)
    if sort == 1:
        facts = [f"{name} {rng.choice(task.VALUES)}." for name in rng.sample(task.NAMES, rng.randint(2, 8))]
        return talk(" ".join(facts), " ".join(rng.sample(facts, len(facts))))
    return recall(rng, SHORT)


def whole_documents(rng: random.Random) -> Turns:
    """Documents of every size up to the task's, with complete answers."""
    return recall(rng, rng.choice((SHORT, MIDDLE, MIDDLE, WHOLE)))


def mixed_answers(rng: random.Random) -> Turns:
    """Documents of the task's size and answers of every kind."""
    return recall(rng, task.Shape(), MIXTURE)


# What to learn from, optimizer steps, batch size, learning rate.
STAGES = (
    (lists_and_few_facts, 600, 64, 3e-3),
    (whole_documents, 150, 32, 2e-3),
    (mixed_answers, 300, 32, 2e-3),
)


def corpus(seed: int) -> Iterator[str]:
    """Text with every word of the task in it, and what the policy reads and writes."""
    everything = [*task.NAMES, *task.VALUES, *task.CHATTER]
    rng = random.Random(f"corpus {seed}")
    for _ in range(20):
        yield " ".join(rng.sample(everything, len(everything)))
    for item in task.make_items(f"corpus {seed}", 200):
        yield f"{prompt_of(item)} {' '.join(everything)}"


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which each word of the task is one token and any other text still encodes.

    A space is put before the first word, so that a word is the same token wherever it stands.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    for word in (*task.NAMES, *task.VALUES):
        assert len(tokenizer.encode(word).ids) == 1, word
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=TEMPLATE
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Two layers: one looks at the words before, one looks up. Heads of 32, the least vLLM runs on CPU."""
    torch.manual_seed(seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ends)
    return model


def learn(model: LlamaForCausalLM, examples: list[Example], training: Training, name: str) -> None:
    """The project's supervised fine-tuning, with Muon for the matrices."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=training.adam_betas, weight_decay=0.0),
    ]

    def show(step: int, metrics: dict[str, float]) -> None:
        if step % 50 == 0:
            print(f"{name}: step {step}, loss {metrics['loss']:.3f}", flush=True)

    sft.fit(model, examples, training, show, optimizers)


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, shape: task.Shape) -> float:
    """Mean truth score of greedy answers on documents that no stage has seen."""
    model.eval()
    scores = []
    for item in task.make_items("policy check", 50, shape):
        turns = talk(prompt_of(item))
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0]
        answer = tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        scores.append(task.score_truth(answer, item.truth))
    return fmean(scores)


def main() -> None:
    """Train stage after stage and save the folder."""
    parser = argparse.ArgumentParser(description="Train the demo's policy from random weights.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "policy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    tokenizer = make_tokenizer(args.seed)
    tokenizer.save_pretrained(args.out)
    encoder = Encoder(str(args.out))
    model = make_model(tokenizer, args.seed)
    print(f"{len(tokenizer)} tokens, {model.num_parameters()} parameters", flush=True)
    for make, steps, batch_size, learning_rate in STAGES:
        name = make.__name__
        rng = random.Random(f"{name} {args.seed}")
        examples = [encoder.example({"messages": make(rng)}, name) for _ in range(steps * batch_size)]
        training = Training(
            method="sft",
            learning_rate=learning_rate,
            batch_size=batch_size,
            micro_batch_size=16,
            warmup_ratio=0.05,
            lr_scheduler_type="linear",
            seed=args.seed,
        )
        learn(model, examples, training, name)
        for where, shape in (("short documents", SHORT), ("the task", task.Shape())):
            print(f"{name}: greedy accuracy on {where}: {accuracy(model, tokenizer, shape):.1%}", flush=True)
        print(f"{time.monotonic() - began:.0f} s", flush=True)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
