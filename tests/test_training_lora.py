"""LoRA: trains the adapter alone, starts as the base model, and leaves as adapter and as merged model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import tiny_model
import torch
from transformers import AutoModelForCausalLM

from lr_ray.store import Store
from lr_ray.training import lora, shared_prefix
from lr_ray.training.batch import PairIds
from lr_ray.training.logps import Policy

PAIR = PairIds(list(range(20)), [1, 2, 3], [4, 5])
OPTIONS = {"r": 4, "lora_alpha": 8}


def logps(model: torch.nn.Module) -> torch.Tensor:
    return Policy(model)(shared_prefix.stream([PAIR]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_adapter_learns_and_it_starts_as_the_base(checkpointing: bool) -> None:
    model = tiny_model.model()
    shared_prefix.prepare(model)
    before = logps(model).detach()
    adapted = lora.wrap(model, OPTIONS)
    adapted.train()
    if checkpointing:
        adapted.activation_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(logps(adapted), before)
    logps(adapted).sum().backward()
    learned = {name for name, one in adapted.named_parameters() if one.grad is not None}
    assert learned
    assert all(".lora_" in name for name in learned)
    assert learned == {name for name, one in adapted.named_parameters() if one.requires_grad}
    # 7 linear layers of each of the two blocks, two matrices each; head and embeddings stay.
    assert len(learned) == 2 * 7 * 2


def test_merged_model_and_adapter_over_the_base_are_the_trained_model(tmp_path: Path) -> None:
    start = tiny_model.save(tmp_path / "start")
    adapted = lora.wrap(AutoModelForCausalLM.from_pretrained(start), OPTIONS)
    torch.manual_seed(0)
    for name, one in adapted.named_parameters():
        if ".lora_" in name:
            one.data.normal_(std=0.1)
    ids = torch.arange(30)[None]
    trained = adapted(ids).logits
    lora.export(start, OPTIONS, adapted.state_dict(), Store(str(tmp_path / "run")))

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(merged(ids).logits, trained, rtol=1e-4, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(start)
    assert (base(ids).logits - trained).abs().max() > 0.1
    over = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "adapter"))
    torch.testing.assert_close(over(ids).logits, trained, rtol=1e-4, atol=1e-4)
    with adapted.disable_adapter():
        untouched = AutoModelForCausalLM.from_pretrained(start)
        torch.testing.assert_close(adapted(ids).logits, untouched(ids).logits)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "config.json"):
        assert (tmp_path / "run" / "model" / name).is_file()


SERVED = """
import json, sys
from vllm import LLM, SamplingParams
ids = list(range(30))
model = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128)
wanted = SamplingParams(max_tokens=1, prompt_logprobs=0)
found = model.generate([{"prompt_token_ids": ids}], wanted, use_tqdm=False)[0].prompt_logprobs
print(json.dumps([one[token].logprob for token, one in zip(ids[1:], found[1:])]))
"""


@pytest.mark.slow
def test_vllm_loads_the_merged_folder_and_computes_what_was_trained(tmp_path: Path) -> None:
    # vLLM's attention on CPU wants heads of 32.
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    start = tiny_model.save(tmp_path / "start", tie_word_embeddings=True, **shape)
    adapted = lora.wrap(AutoModelForCausalLM.from_pretrained(start), OPTIONS)
    torch.manual_seed(0)
    for name, one in adapted.named_parameters():
        if ".lora_" in name:
            one.data.normal_(std=0.1)
    lora.export(start, OPTIONS, adapted.state_dict(), Store(str(tmp_path / "run")))
    quiet = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    command = [sys.executable, "-c", SERVED, str(tmp_path / "run" / "model")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **quiet}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ids = torch.arange(30)
    trained = adapted(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    served = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(served, trained.detach(), rtol=0, atol=1e-3)
    with adapted.disable_adapter():
        base = adapted(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    assert (base - served).abs().max() > 0.1


def test_bad_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"training.lora: .*rank_of_matrix"):
        lora.settings({"rank_of_matrix": 3})
    with pytest.raises(ValueError, match=r"training.lora: .*no_such_layer"):
        lora.wrap(tiny_model.model(), {"target_modules": ["no_such_layer"]})
