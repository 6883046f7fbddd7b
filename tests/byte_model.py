"""Makes a tiny chat model that spells every byte, trained for half a minute: for JSON schemas and tool calls.

Its vocabulary is 256 bytes and six special tokens, so no grammar is out of its reach. It learned two habits:
a short sentence as answer, and a small JSON object when the user says "json". Shown tools it tries to call
one, but only a grammar makes the call a right one. The same seed gives the same weights on one machine.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_TAGS = ("<tool_call>", "</tool_call>", "<tools>")
CONTEXT = 2048  # tokens, that is bytes
STEPS, BATCH, LENGTH = 500, 8, 288
WORDS = ("apple", "bird", "cloud", "dog", "east", "fig", "gold", "hill", "ink", "jar", "kite", "lamp", "moon")
CITIES = ("Paris", "Rome", "Oslo", "Lima")

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{% endif %}
{{- '<tools>' }}
{%- for tool in tools %}{{- '\\n' }}
{{- {'name': tool.function.name, 'parameters': tool.function.parameters} | tojson }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role != 'system' %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content %}{{- message.content }}{% endif %}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def write(folder: Path, seed: int = 0) -> Path:
    """Train the model and save it in Hugging Face layout; returns the folder."""
    tokenizer = build_tokenizer()
    model = _trained(tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    core.add_tokens(list(TOOL_TAGS))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _trained(tokenizer: Any, seed: int) -> Any:
    import torch
    from torch.nn.functional import cross_entropy

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = _untrained(tokenizer)
            optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=STEPS)
            batches = _batches(tokenizer, random.Random(seed))
            for _ in range(STEPS):
                ids, targets = (torch.tensor(part) for part in next(batches))
                logits = model(input_ids=ids).logits[:, :-1]
                loss = cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-1)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return model.eval()


def _untrained(tokenizer: Any) -> Any:
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,  # of size 32, the smallest that vLLM takes on CPU
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def _batches(tokenizer: Any, rng: random.Random) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """Token ids and targets, [BATCH][LENGTH] each; the target is -1 where nothing is learned."""
    pad = tokenizer.pad_token_id
    while True:
        rows: list[tuple[list[int], list[int]]] = []
        while len(rows) < BATCH:
            prompt, answer = _example(tokenizer, rng)
            ids = [*prompt, *answer]
            if len(ids) <= LENGTH:
                fill = LENGTH - len(ids)
                rows.append((ids + [pad] * fill, [-1] * len(prompt) + answer + [-1] * fill))
        yield [ids for ids, _ in rows], [targets for _, targets in rows]


def _example(tokenizer: Any, rng: random.Random) -> tuple[list[int], list[int]]:
    kind = rng.choice(("sentence", "json", "tool", "tool"))
    text = " ".join(_word(rng) for _ in range(rng.randint(1, 6)))
    if kind == "sentence":
        answer = f"You said {len(text.split())} words."
    elif kind == "json":
        text, answer = f"{text} json", _object(rng)
    else:
        call = f'{{"name": "get_weather", "arguments": {{"city": "{rng.choice(CITIES)}"}}}}'
        answer = f"<tool_call>\n{call}\n</tool_call>"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tools=[WEATHER] if kind == "tool" else None,
        add_generation_prompt=True,
        tokenize=False,
    )
    return tokenizer.encode(prompt), tokenizer.encode(answer + "<|im_end|>")


def _object(rng: random.Random) -> str:
    """A small JSON object: short texts and numbers, so that a grammar is soon satisfied."""
    values = (f'"{_word(rng)}"', str(rng.randint(0, 99)), "true", f'["{_word(rng)}"]')
    fields = (f'"{_word(rng)}": {rng.choice(values)}' for _ in range(rng.randint(1, 3)))
    return "{" + ", ".join(fields) + "}"


def _word(rng: random.Random) -> str:
    return rng.choice(WORDS)


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
