"""A random Llama of a few thousand weights with a byte-level tokenizer and a chat template, for tests."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus the template's markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    made = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|end|>", pad_token="<|pad|>")  # noqa: S106
    made.chat_template = TEMPLATE
    made.model_max_length = 512
    return made


SHAPE: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}


def model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Two layers, 32 wide, grouped queries, window of 512 tokens, float32."""
    shape = {**SHAPE, "eos_token_id": 257, "pad_token_id": 256, "bos_token_id": None, **changes}
    set_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**shape))


def save(folder: str | Path, seed: int = 0, **changes: Any) -> str:
    """Write model, tokenizer and generation config as a Hugging Face folder; its path."""
    made = model(seed, **changes)
    made.generation_config = GenerationConfig(
        eos_token_id=257, pad_token_id=256, do_sample=True, temperature=1.0
    )
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)
