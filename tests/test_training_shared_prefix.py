"""The shared prefix against two plain passes through the untouched transformers model."""

import copy
import random
from typing import Any

import pytest
import tiny_model
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from lr_ray.training import attention, shared_prefix
from lr_ray.training.batch import PairIds, pad_pairs
from lr_ray.training.logps import Policy, head_logps, pair_logps

torch.set_num_threads(1)

SMALL: dict[str, Any] = {**tiny_model.SHAPE, "head_dim": 8, "pad_token_id": 0}
WINDOW = 11
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama3-rope": ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": WINDOW}),
    "glm": ("Glm", {}),
    "glm4": ("Glm4", {}),
    "gemma3": ("Gemma3", {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
}


def family(name: str, **changes: Any) -> Any:
    kind, own = FAMILIES[name]
    own = copy.deepcopy(own)
    if own.get("rope_parameters"):
        own["rope_parameters"] |= {
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    config = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**{**SMALL, **own, **changes}))


def ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(1, 256) for _ in range(length)]


def make_pairs(lengths: list[tuple[int, int, int]]) -> list[PairIds]:
    rng = random.Random(1)
    return [PairIds(ids(rng, prompt), ids(rng, one), ids(rng, two)) for prompt, one, two in lengths]


PAIRS = make_pairs([(30, 4, 8), (39, 5, 1), (1, 7, 3)])


def plain_logps(model: Any, pair: PairIds) -> list[torch.Tensor]:
    """Two passes through the model's own forward, one answer each."""
    found = []
    for answer in (pair.chosen, pair.rejected):
        logits = model(input_ids=torch.tensor([pair.prompt + answer]), use_cache=False).logits[0].float()
        logps = logits.to(torch.promote_types(logits.dtype, model.dtype)).log_softmax(-1)
        places = torch.arange(len(pair.prompt) - 1, len(pair.prompt) - 1 + len(answer))
        found.append(logps[places, torch.tensor(answer)])
    return found


def weigh(logps: torch.Tensor) -> torch.Tensor:
    return (logps * torch.linspace(-1, 1, len(logps), dtype=logps.dtype)).sum()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_equals_two_plain_passes(name: str, checkpointing: bool) -> None:
    model = family(name).double().train()
    untouched = copy.deepcopy(model)
    assert untouched.config._attn_implementation == "sdpa"
    expected = torch.cat([part for pair in PAIRS for part in plain_logps(untouched, pair)])
    weigh(expected).backward()
    assert shared_prefix.unsupported(model, 64) is None
    shared_prefix.prepare(model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    found = Policy(model)(shared_prefix.stream(PAIRS))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weigh(found).backward()
    wanted = gradients(untouched)
    assert max(g.abs().max() for g in wanted.values()) > 1e-2
    torch.testing.assert_close(gradients(model), wanted, rtol=1e-6, atol=1e-6)


def test_windows_are_narrower_than_these_pairs() -> None:
    """The two tests with windows would be empty otherwise."""
    wide, narrow = family("mistral"), family("mistral-window")
    one, two = (torch.cat(plain_logps(model, PAIRS[0])) for model in (wide, narrow))
    assert not torch.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral-window"])
def test_bf16_is_as_close_to_float64_as_two_plain_passes_are(name: str) -> None:
    exact = family(name).double()
    model = copy.deepcopy(exact).bfloat16().train()
    reference = Policy(exact)(pad_pairs(PAIRS))
    weigh(reference).backward()
    plain = copy.deepcopy(model)
    logps = Policy(plain)(pad_pairs(PAIRS))
    weigh(logps).backward()
    shared_prefix.prepare(model)
    found = Policy(model)(shared_prefix.stream(PAIRS))
    weigh(found).backward()
    assert found.dtype == torch.float32

    def distance(one: torch.Tensor, other: torch.Tensor) -> float:
        truth = other.detach().double()
        return float((one.detach().double() - truth).norm() / truth.norm())

    assert distance(found, reference) < 1e-2
    truth, ours, theirs = gradients(exact), gradients(model), gradients(plain)
    flat = [torch.cat([g[n].double().flatten() for n in truth]) for g in (truth, ours, theirs)]
    # bf16 itself is off by about a hundredth in the gradient of so small a model, shared or not.
    assert distance(flat[1], flat[0]) < 1.1 * distance(flat[2], flat[0])
    assert found.sum().item() == pytest.approx(reference.sum().item(), rel=1e-2)


def test_pair_logps_takes_lists_and_tensors() -> None:
    model, pair = family("llama").double(), PAIRS[0]
    expected = plain_logps(copy.deepcopy(model), pair)
    chosen, rejected = pair_logps(model, pair.prompt, torch.tensor(pair.chosen), pair.rejected)
    torch.testing.assert_close([chosen, rejected], expected, rtol=0, atol=1e-6)
    assert chosen.requires_grad


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "message"),
    [
        ([1], [], [2], "the chosen answer is empty"),
        ([1], [2], [], "the rejected answer is empty"),
        ([], [2], [2], "the prompt is empty"),
        ([1] * 510, [2] * 2, [2] * 3, "513 tokens do not fit into the model's window of 512"),
    ],
)
def test_pair_logps_refuses(prompt: list[int], chosen: list[int], rejected: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_logps(family("llama"), prompt, chosen, rejected)


def test_the_answers_do_not_see_each_other() -> None:
    model, pair = tiny_model.model().double(), PAIRS[0]
    shared_prefix.prepare(model)
    other = PairIds(pair.prompt, [(token + 1) % 256 for token in pair.chosen], pair.rejected)
    one, two = (Policy(model)(shared_prefix.stream([p]))[-len(pair.rejected) :] for p in (pair, other))
    assert torch.equal(one, two)


def test_pairs_of_a_stream_do_not_see_each_other() -> None:
    model = family("qwen2-window").double()
    shared_prefix.prepare(model)
    alone = [Policy(model)(shared_prefix.stream([pair])) for pair in PAIRS]
    torch.testing.assert_close(
        Policy(model)(shared_prefix.stream(PAIRS)), torch.cat(alone), rtol=0, atol=1e-12
    )


def test_skipping_the_last_layers_unread_rows_changes_nothing() -> None:
    model = family("glm4").double().train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    shared_prefix.prepare(model)
    shared_prefix.prepare(model)  # A second call adds no second hook.
    batch = shared_prefix.stream(PAIRS)
    results = []
    for narrow in (True, False):
        hidden = shared_prefix.hidden_states(model, batch, narrow=narrow)
        logps = head_logps(model, hidden, batch.labels)
        weigh(logps).backward()
        results.append((logps.detach(), gradients(model)))
        model.zero_grad()
    # transformers' norms compute in float32 whatever the model.
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-6)


def test_the_last_layer_computes_the_answers_alone() -> None:
    model, seen = family("llama"), []
    shared_prefix.prepare(model)
    model.model.layers[-1].mlp.down_proj.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    model.model.norm.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    Policy(model)(shared_prefix.stream(PAIRS[:1]))
    # Chosen 4 and rejected 8: rows are the prompt's last and all but the last of each; targets 12.
    assert seen == [11, 12]


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_a_prepared_model_still_takes_padding_and_caches(name: str) -> None:
    model = family(name).double().eval()
    untouched = copy.deepcopy(model)
    shared_prefix.prepare(model)
    rows = torch.tensor([[0, 0, 0, *PAIRS[0].prompt], [*PAIRS[1].prompt[:33]]])
    padding = (rows != 0).long()
    torch.testing.assert_close(
        model(rows, attention_mask=padding).logits[:, -1],
        untouched(rows, attention_mask=padding).logits[:, -1],
        rtol=0,
        atol=1e-9,
    )
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 260}
    one, two = (m.generate(rows, attention_mask=padding, **settings) for m in (model, untouched))
    assert torch.equal(one, two)
    plain = pad_pairs(PAIRS)
    torch.testing.assert_close(Policy(model)(plain), Policy(untouched)(plain), rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize("rows", [1, 9, 40])
def test_causal_by_hand(rows: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 4)
    torch.manual_seed(0)
    query = torch.randn(1, 4, rows, 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, 40, 8, dtype=torch.float64)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.3
    own, seen = torch.arange(40 - rows, 40)[:, None], torch.arange(40)[None]
    hidden = (seen > own) | (seen <= own - (window or 100))
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)
    found = attention.causal(query, key, value, attention.How(0.3, 0.0, window))
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_the_gpus_way_of_aligning_is_the_same() -> None:
    """torch writes the mask out on a CPU; what is asked of it is what a GPU's kernels get."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, 40, 8, dtype=torch.float64)
    how = attention.How(0.3)
    expected = attention.causal(query, key, value, how)
    torch.testing.assert_close(attention._lower_right(query, key, value, how), expected)


def refused(kind: str, **changes: Any) -> str | None:
    config = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    model = AutoModelForCausalLM.from_config(config(**{**SMALL, **changes}))
    return shared_prefix.unsupported(model, 100)


def test_tricks_are_refused_by_name() -> None:
    assert "attn_logit_softcapping" in str(refused("Gemma2"))
    assert "does not use transformers' attention interface" in str(refused("Bloom", n_head=4, hidden_size=32))
    gpt2 = {"n_head": 4, "n_embd": 32, "n_layer": 1, "bos_token_id": 1, "eos_token_id": 1}
    assert "no rotary positions" in str(refused("GPT2", **gpt2))
    kinds = {"layer_types": ["chunked_attention", "full_attention"]}
    assert "layers of type chunked_attention" in str(refused("Qwen3", **kinds))
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    assert "M-RoPE" in str(refused("Llama", rope_parameters=sections))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert "rope_type dynamic" in str(refused("Llama", rope_parameters=dynamic, max_position_embeddings=64))
    assert refused("Llama", rope_parameters=dynamic, max_position_embeddings=128) is None
    with pytest.raises(ValueError, match="attn_logit_softcapping"):
        pair_logps(family("llama", attn_logit_softcapping=5.0), [1], [2], [3])


def test_an_unknown_family_must_pass_the_probe() -> None:
    model = family("gemma3")
    assert shared_prefix.unsupported(model, 64) is None
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    assert refused("Qwen3Moe", **experts) is None
    other = family("gemma3")
    # A model that reads where a token stands in the row, not its position.
    other.model.layers[0].register_forward_pre_hook(
        lambda m, args: (args[0] + torch.linspace(0, 1, args[0].shape[1])[None, :, None], *args[1:])
    )
    assert "other logits from a stream" in str(shared_prefix.unsupported(other, 64))
    assert other.config._attn_implementation == "sdpa"


def test_a_model_that_drops_the_spans_is_refused() -> None:
    model = family("llama")
    shared_prefix.prepare(model)
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda m, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "shared_prefix_spans"}),
            with_kwargs=True,
        )
    with pytest.raises(ValueError, match="does not hand the arguments"):
        Policy(model)(shared_prefix.stream(PAIRS))
