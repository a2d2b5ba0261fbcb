"""TRL's DPOTrainer on one pair, its reference computed ahead."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lr_ray.training.batch import PairIds


def make_trl(model: Any, pair: PairIds, *, bf16: bool) -> Callable[[], torch.Tensor]:
    """A step through the trainer's own collator, loss and backward, without its optimizer.

    Gradient checkpointing is as the model has it. Two equal lengths need no padding, so its attention
    gets no mask. `padding_free` is out of order in TRL 1.16, and its chunked head has no switch.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    words = {name: " ".join(f"w{i}" for i in part) for name, part in _parts(pair).items()}
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-dpo-"),
        per_device_train_batch_size=1,
        max_length=None,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,  # the model's own setting counts
        bf16=bf16,
        use_cpu=model.device.type == "cpu",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{**words, "prompt": words["prompt"] + " "}]),
        processing_class=_tokenizer(model.config.vocab_size),
    )
    assert trainer.model is not None
    wrapped = trainer.accelerator.prepare_model(trainer.model)
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = [pair.prompt + pair.chosen, pair.prompt + pair.rejected]
    assert inputs["input_ids"].tolist() == expected, "TRL sees other tokens"
    # The same reference for every variant, so that all must come to the same loss.
    for name, value in zip(("ref_chosen_logps", "ref_rejected_logps"), pair.reference, strict=True):
        inputs[name] = torch.full_like(inputs[name], value)
    wrapped.train()

    def step() -> torch.Tensor:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(wrapped, inputs)
        trainer.accelerator.backward(loss)
        return loss.detach()

    return step


def _parts(pair: PairIds) -> dict[str, list[int]]:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Token i is the word `wi`; the answers end with w0, the end of sequence."""
    end = "w0"
    fast = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token=end))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=end, pad_token=end)
