#!/usr/bin/env python3
"""The output of llama.cpp's own converter for goldens: keys, and names, shapes and checksums of tensors, in NAME.gguf.json.

Arguments: a folder with llama.cpp's `conversion` and `gguf-py` (vendor/llama.cpp in the sdist of llama-cpp-python), and
the names of goldens, by default all. Weights are those of make.py, in F32; the tokenizer is left out. The tests write the same file from the golden and compare.
"""
import json, logging, pathlib, sys, tempfile, zlib

HERE = pathlib.Path(__file__).parent
NAMES = ["qwen3next", "qwen35moe", "qwen35moe-published", "qwen35", "qwen35-grouped", "glm4moe",
         "glm4moe-groups", "deepseek2-lite", "deepseek2-v2", "deepseek2-v3", "deepseek2-halves", "deepseek2-flash",
         "bailingmoe2", "granitemoe", "granitemoe-shared", "mellum", "ernie4_5moe", "ernie4_5moe-apart", "dots1", "minimaxm2",
         "minimaxm2-plain", "hunyuanmoe", "afmoe", "kimi-linear", "bailingmoe3", "granitehybrid", "nemotronh",
         "nemotronh-dense", "phimoe", "smallthinker",
         "smallthinker-plain", "laguna", "laguna-values", "grovemoe", "grovemoe-tied"]
ROOT = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(ROOT / "gguf-py"), str(ROOT), str(HERE)]
logging.disable(logging.CRITICAL)

import gguf, torch
from conversion import get_model_class
from conversion.base import ModelBase, ModelType, get_model_architecture
from make import values
from safetensors.numpy import save_file


def no_vocab(self):
    self.gguf_writer.add_tokenizer_model("none")


def convert(name, golden, folder):
    (folder / "config.json").write_text(json.dumps(golden["config"]))
    vocab = golden["config"].get("text_config", golden["config"])["vocab_size"]
    (folder / "tokenizer.json").write_text(json.dumps(dict(model=dict(vocab={str(i): i for i in range(vocab)}), added_tokens=[])))
    arrays = {key: values(key, *rest) for key, *rest in golden["tensors"]}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    # `transformers` gives keys of these types other names, which the converter does not know, or does not know the type.
    same = golden["config"]["model_type"] in ("bailing_hybrid", "granitemoehybrid", "nemotron_h", "smallthinker", "grove_moe")
    numbers = dict(golden["config"]) if same else ModelBase.load_hparams(folder, False)
    cls = get_model_class(get_model_architecture(numbers, ModelType.TEXT))
    for c in cls.__mro__:
        if "set_vocab" in c.__dict__:
            c.set_vocab = no_vocab
    cls.no_mtp = True
    out = folder / "out.gguf"
    with torch.inference_mode():
        cls(folder, gguf.LlamaFileType.ALL_F32, out, use_temp_file=False, eager=True, hparams=numbers).write()
    return gguf.GGUFReader(out)


for name in sys.argv[2:] or NAMES:
    golden = json.loads((HERE / f"{name}.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        reader = convert(name, golden, pathlib.Path(folder))
        arch = reader.fields["general.architecture"].contents()
        keys = {k: f.contents() for k, f in reader.fields.items() if k.startswith(arch + ".")}
        tensors = []
        for t in sorted(reader.tensors, key=lambda t: t.name):
            assert t.tensor_type == gguf.GGMLQuantizationType.F32
            # Exponentials are not bit-identical everywhere, so these are stored.
            stored = t.data.reshape(-1).tolist() if t.name.endswith("ssm_a") else zlib.crc32(t.data.tobytes())
            tensors.append([t.name, [int(n) for n in reversed(t.shape)], stored])
    (HERE / f"{name}.gguf.json").write_text(json.dumps(dict(architecture=arch, keys=keys, tensors=tensors)))
    print(name, len(tensors), "tensors", flush=True)
