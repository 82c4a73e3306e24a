"""What the transformers of this process makes of exported directories: ids of texts, and logits.

Run as a program, with another version of transformers first on its path, it takes the arguments of
`read` as JSON on stdin and writes the version and what `read` returns to a file.
"""

import json
import sys
from typing import Any

import torch
import transformers


def read(
    texts: list[str], turns: list[dict[str, str]], tokenizers: list[str], models: list[str]
) -> dict[str, Any]:
    """Directory -> what its tokenizer makes of texts and turns, or the last logits of its model."""
    answers: dict[str, Any] = {}
    for directory in tokenizers:
        words = transformers.AutoTokenizer.from_pretrained(directory)
        rendered = words.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        rows = [words(text).input_ids for text in [*texts, rendered]]
        answers[directory] = {
            "rendered": rendered,
            "ids": rows,
            "plain": [words(t, add_special_tokens=False).input_ids for t in [*texts, rendered]],
            "decoded": [words.decode(row, skip_special_tokens=True) for row in rows],
            "special": sorted(map(str, words.all_special_tokens)),
            "padding": [words.padding_side, words.truncation_side, words.pad_token_id],
            "ends": [words.bos_token_id, words.eos_token_id, words.model_max_length],
            "inputs": sorted(words(texts[0])),
        }
    for directory in models:
        # Of the ways to attend only this one has Gemma 2's caps in every version.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            logits = model(torch.arange(1, 60)[None] % model.config.vocab_size).logits
        answers[directory] = logits[0, -1].tolist()
    return answers


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    with open(sys.argv[1], "w") as file:
        json.dump([transformers.__version__, read(*asked)], file)
