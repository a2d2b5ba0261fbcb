"""What a DPO step costs: ours against TRL and the plain ways on a CPU, and an 8B model's on one GPU.

python -m jobs.bench_dpo cpu    each variant alone in a process, side by side; a markdown table
python -m jobs.bench_dpo gpu    random weights of Llama-3.1-8B shape, by length, LoRA or full

Both need torch and transformers alone; TRL and peft are used where they are installed.
"""
