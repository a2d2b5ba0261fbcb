"""LoRA: trains the adapter alone, starts as the base model, and leaves as adapter and as merged model."""

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


def test_bad_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"training.lora: .*rank_of_matrix"):
        lora.settings({"rank_of_matrix": 3})
    with pytest.raises(ValueError, match=r"training.lora: .*no_such_layer"):
        lora.wrap(tiny_model.model(), {"target_modules": ["no_such_layer"]})
