"""From rows to token ids: masks, endings, hostile text, refusals; and the files a training keeps."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import tiny_model
import torch
from safetensors.torch import load_file

from lr_ray.config import Config, Training
from lr_ray.schemas import PAIRS
from lr_ray.store import Store
from lr_ray.training import folder, launch, reference, scoring, source, zero
from lr_ray.training.batch import PairIds
from lr_ray.training.checkpoint import publish
from lr_ray.training.measure import Measure, fitting
from lr_ray.training.record import Record
from lr_ray.training.tokens import Encoder

END = 257
SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "red?"}
BLUE = {"role": "assistant", "content": "blue"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model.save(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def encoder(start: str) -> Encoder:
    return Encoder(start)


def pair_of(chosen: str, rejected: str = "no") -> dict[str, Any]:
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": [USER], **{k: [{"role": "assistant", "content": v}] for k, v in answers.items()}}


def test_a_pair_is_the_prompt_as_sampled_and_each_answer_with_its_end(encoder: Encoder) -> None:
    pair = encoder.pair(pair_of("blue"), "row 1")
    decode = encoder.tokenizer.decode
    assert decode(pair.prompt) == "<|user|>red?<|end|><|assistant|>"
    assert decode(pair.chosen) == "blue<|end|>"
    assert decode(pair.rejected) == "no<|end|>"
    assert pair.chosen[-1] == END


def test_an_answer_that_spells_a_special_token_stays_text(encoder: Encoder) -> None:
    pair = encoder.pair(pair_of("a<|end|>b"), "row 1")
    assert pair.chosen.count(END) == 1
    assert encoder.tokenizer.decode(pair.chosen) == "a<|end|>b<|end|>"
    assert len(pair.chosen) == len("a<|end|>b") + 1


def with_template(encoder: Encoder, template: str) -> Encoder:
    made = object.__new__(Encoder)
    made.__dict__.update(encoder.__dict__)
    made.tokenizer = tiny_model.tokenizer()
    made.tokenizer.chat_template = template
    return made


def test_what_follows_the_end_of_a_turn_is_not_learned(encoder: Encoder) -> None:
    changed = with_template(encoder, tiny_model.TEMPLATE.replace("<|end|>{% endfor", "<|end|>\n{% endfor"))
    assert changed.tokenizer.decode(changed.pair(pair_of("blue"), "row 1").chosen) == "blue<|end|>"
    turns = changed.example({"messages": [USER, BLUE, USER, BLUE]}, "row 1")
    learned = [token for token in turns["labels"] if token != -100]
    assert changed.tokenizer.decode(learned) == "blue<|end|>" * 2
    text = "<|user|>red?<|end|>\n<|assistant|>blue<|end|>\n"
    assert changed.tokenizer.decode(turns["input_ids"]) == (text * 2).removesuffix("\n")


def test_a_template_without_an_end_gets_the_eos_token(encoder: Encoder) -> None:
    changed = with_template(encoder, tiny_model.TEMPLATE.replace("<|end|>", "\n"))
    assert changed.tokenizer.decode(changed.pair(pair_of("blue"), "row 1").chosen) == "blue<|end|>"


def test_a_template_may_trim_and_think(encoder: Encoder) -> None:
    thinking = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}(thought){% endif %}"
        "{{ m.content | trim }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    changed = with_template(encoder, thinking)
    assert (
        changed.tokenizer.decode(changed.pair(pair_of("  blue "), "row 1").chosen) == "(thought)blue<|end|>"
    )


def test_sft_learns_every_assistant_turn_and_nothing_else(encoder: Encoder) -> None:
    example = encoder.example({"messages": [SYSTEM, USER, BLUE, USER, BLUE]}, "row 1")
    assert encoder.tokenizer.decode(example["input_ids"]) == (
        "<|system|>s<|end|>" + "<|user|>red?<|end|><|assistant|>blue<|end|>" * 2
    )
    learned = [label for label in example["labels"] if label != -100]
    assert encoder.tokenizer.decode(learned) == "blue<|end|>" * 2
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        assert label in (-100, token)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (pair_of(" \n"), "row 9: chosen: the answer is empty"),
        ({"prompt": [USER], "chosen": [BLUE]}, "row 9: rejected is not a list"),
        ({**pair_of("a"), "chosen": [BLUE, BLUE]}, "row 9: chosen is not one assistant message"),
        ({**pair_of("a"), "chosen": [USER]}, "row 9: chosen is not one assistant message"),
        ({**pair_of("a"), "prompt": [{"role": "tool", "content": "x"}]}, "row 9: .* role 'tool'"),
    ],
)
def test_bad_pairs_are_refused_by_name(encoder: Encoder, row: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        encoder.pair(row, "row 9")


def test_bad_conversations_and_templates_are_refused_by_name(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="row 9: no assistant message"):
        encoder.example({"messages": [USER]}, "row 9")
    rewriting = with_template(encoder, "{{ messages | length }}" + tiny_model.TEMPLATE)
    with pytest.raises(ValueError, match="row 9: chosen: the chat template does not put the answer behind"):
        rewriting.pair(pair_of("blue"), "row 9")
    shouting = with_template(encoder, tiny_model.TEMPLATE.replace("['content']", "['content'] | upper"))
    with pytest.raises(ValueError, match="rewrites the answer"):
        shouting.pair(pair_of("blue"), "row 9")


def test_a_folder_without_chat_template_is_refused_by_name(tmp_path: Path) -> None:
    bare = tiny_model.tokenizer()
    bare.chat_template = None
    tiny_model.model().save_pretrained(tmp_path)
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: the tokenizer has no chat template"):
        launch.check(Config.model_validate({"run_dir": "x", "sampling": {"model": str(tmp_path)}}))


def config(start: str, **training: Any) -> Config:
    return Config.model_validate({"run_dir": "x", "sampling": {"model": start}, "training": training})


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"batch_size": 6, "micro_batch_size": 2, "num_workers": 2}, "batch_size 6 is no multiple"),
        ({"deepspeed": {"train_batch_size": 3}}, "train_batch_size 3 contradicts"),
        ({"deepspeed": {"scheduler": {}}}, "scheduler"),
        ({"report_to": ["wandb"]}, "wandb is not installed"),
        ({"max_length": 600}, "max_length 600 is over the window"),
        ({"deepspeed": {"fp16": {"enabled": True}}}, r"fp16.enabled True contradicts training\.precision"),
        ({"deepspeed": {"bf16": {"enabled": True}}}, "bf16.enabled True contradicts .* which is auto"),
        ({"deepspeed": {"bf16": {"enabled": False}}, "precision": "bf16"}, "bf16.enabled False contradicts"),
        ({"lora": {"bias": "all"}}, r"training\.lora\.bias"),
        ({"lora": {"init_lora_weights": "pissa"}}, "init_lora_weights pissa: it changes the base"),
        ({"num_workers": 8, "sequence_parallel_size": 8}, "4 attention heads .* cannot be shared out"),
    ],
)
def test_settings_are_refused_before_anything_starts(start: str, training: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        launch.check(config(start, **training))


def test_a_model_that_changes_its_logits_is_refused_before_anything_starts(
    start: str, tmp_path: Path
) -> None:
    shutil.copytree(start, tmp_path / "capped")
    shape = json.loads((tmp_path / "capped" / "config.json").read_text())
    (tmp_path / "capped" / "config.json").write_text(json.dumps({**shape, "final_logit_softcapping": 30.0}))
    with pytest.raises(ValueError, match="final_logit_softcapping is not supported"):
        launch.check(config(str(tmp_path / "capped")))


def test_actors_score_unless_workers_are_needed_together() -> None:
    assert scoring.actors(Training(num_workers=4)) == 4
    assert scoring.actors(Training(num_workers=4, reference_actors=1)) == 1
    assert scoring.actors(Training(num_workers=4, sequence_parallel_size=2)) == 0
    assert scoring.actors(Training(num_workers=4, sequence_parallel_size=2, reference_actors=3)) == 3
    assert scoring.actors(Training(num_workers=4, lora={"r": 4})) == 0


def test_the_users_deepspeed_settings_stand_over_ours() -> None:
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    made = zero.settings(Training(batch_size=8, deepspeed={**offload, "gradient_clipping": 3.0}), bf16=True)
    assert made["gradient_clipping"] == 3.0
    assert made["gradient_accumulation_steps"] == 8
    assert made["bf16"] == {"enabled": True}
    unchecked = {"bf16": {"check_grad_overflow": False}}
    assert zero.settings(Training(deepspeed=unchecked), bf16=True)["bf16"] == {
        **unchecked["bf16"],
        "enabled": True,
    }
    assert made["optimizer"]["params"]["torch_adam"] is False


def test_rows_over_the_limit_are_left_out_and_none_left_is_refused() -> None:
    measures = [Measure(row, 10, longest, 3, "k") for row, longest in ((2, 5), (0, 9), (1, 7))]
    assert [measure.row for measure in fitting(measures, 7)] == [1, 2]
    with pytest.raises(ValueError, match="no row fits into 4 tokens; the shortest of 3 has 5"):
        fitting(measures, 4)


def test_rows_come_from_jsonl_and_parquet_with_their_names(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="no rows to train on"):
        source.read(Training(), store)
    with pytest.raises(ValueError, match=r"training\.data"):
        source.read(Training(method="sft"), store)
    full = {**pair_of("blue"), **dict.fromkeys(PAIRS.names[4:])}
    for name in ("a", "b"):
        store.write_rows("pairs", [{**full, "prompt_id": name}], PAIRS)
    rows = source.read(Training(), store)
    assert len(rows) == 2
    assert rows[1][0].endswith(".parquet: row 1")
    assert rows[1][1]["chosen"] == [{"role": "assistant", "content": "blue"}]
    lines = tmp_path / "sft.jsonl"
    lines.write_text(
        json.dumps({"messages": [USER, BLUE]}) + "\n\n" + json.dumps({"messages": [USER]}) + "\n"
    )
    rows = source.read(Training(method="sft", data=[str(lines)]), store)
    assert rows[1] == (f"{lines}: line 3", {"messages": [USER]})
    lines.write_text('{"messages": []}\n{"mess')
    with pytest.raises(ValueError, match="line 2: not valid JSON"):
        source.read(Training(method="sft", data=[str(lines)]), store)
    with pytest.raises(ValueError, match="no column messages"):
        source.read(Training(method="sft", data=[store.path("pairs")]), store)


def test_reference_scores_are_kept_by_token_ids(tmp_path: Path) -> None:
    one, two = PairIds([1, 2], [3], [4]), PairIds([1], [2, 3], [4])
    keys = [reference.key(one), reference.key(two)]
    assert keys[0] != keys[1]
    cache = reference.Cache(Store(str(tmp_path)), "model")
    assert reference.missing([*keys, keys[0]], cache.load()) == [0, 1]
    cache.put({keys[0]: (-1.5, -2.5)})
    assert reference.missing(keys, cache.load()) == [1]
    cache.put({keys[1]: (-3.0, -4.0)})
    assert cache.load() == {keys[0]: (-1.5, -2.5), keys[1]: (-3.0, -4.0)}


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    tiny_model.save(tmp_path, seed=0)
    before = reference.fingerprint(str(tmp_path), "fp32")
    assert reference.fingerprint(str(tmp_path), "fp32") == before
    assert reference.fingerprint(str(tmp_path), "bf16") != before
    tiny_model.save(tmp_path, seed=1)
    assert reference.fingerprint(str(tmp_path), "fp32") != before


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "run"))
    if request.param == "remote":  # any file system that is not the local one
        (tmp_path / "bucket").mkdir()
        made.fs, made.root = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "run"
        assert not made.local
    return made


def test_a_published_model_is_whole(store: Store, start: str) -> None:
    model = folder.load(start, torch.float32)
    weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    folder.save(model, weights, start, store)
    assert launch.done(store)
    text = store.read("model", "chat_template.jinja")
    assert text == tiny_model.TEMPLATE.encode()
    assert store.read("model", "generation_config.json") == Path(start, "generation_config.json").read_bytes()
    assert store.read("model", "model.safetensors")
    assert not store.exists("model.tmp")


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    start = tiny_model.save(tmp_path / "start", tie_word_embeddings=True)
    shape = json.loads((tmp_path / "start" / "config.json").read_text())
    (tmp_path / "start" / "config.json").write_text(json.dumps({**shape, "dtype": "bfloat16"}))
    model = folder.load(start, torch.float32)
    model.lm_head.weight.data += 1
    folder.save(model, model.state_dict(), start, Store(str(tmp_path / "run")))
    written = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert "lm_head.weight" not in written
    assert torch.equal(written["model.embed_tokens.weight"], model.lm_head.weight.bfloat16())


def test_a_remote_model_is_not_there_before_its_marker(tmp_path: Path) -> None:
    made = Store(str(tmp_path / "run"))
    (tmp_path / "bucket").mkdir()
    made.fs, made.root = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "run"
    (tmp_path / "model").mkdir()
    for name in ("config.json", "weights"):
        (tmp_path / "model" / name).write_text(name)
    seen: list[bool] = []
    write = made.write

    def watched(data: bytes, *parts: str) -> None:
        seen.append(made.exists("model", "weights") and not made.exists("model", "config.json"))
        write(data, *parts)

    made.write = watched  # type: ignore[method-assign]
    publish(tmp_path / "model", made, "model", "config.json")
    assert seen == [True]
    assert made.read("model", "config.json") == b"config.json"


def test_metrics_of_steps_that_will_be_taken_again_go(store: Store) -> None:
    record = Record(store, Training(), 0, 9, None)
    for step in (1, 2, 3):
        record.add(step, {"loss": float(step), "num_tokens": 10})
    record.close()
    record = Record(store, Training(), 1, 9, None)
    record.add(2, {"loss": 2.5, "num_tokens": 7})
    record.close()
    lines = [json.loads(line) for line in (store.read("metrics.jsonl") or b"").splitlines()]
    assert [(line["step"], line["loss"], line["num_tokens"]) for line in lines] == [
        (1, 1.0, 10),
        (2, 2.5, 17),
    ]
    assert any(
        "tfevents" in info.path for info in store.fs.get_file_info(pafs.FileSelector(store.path("metrics")))
    )
