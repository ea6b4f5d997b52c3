"""Compressed folders in transformers: what is loaded is what nnc.load gives, what is saved are the same bytes, all else is refused."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import nnc
from nnc.container import is_compressed, open_file
from nnc.huggingface import dispatch
from nnc.pretrained_config import clear_config, mark_config

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.modeling_utils")
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from nnc.huggingface.quiet import quiet  # noqa: E402
from nnc.huggingface.reading import CompressedFile  # noqa: E402

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=40)


@pytest.fixture(autouse=True)
def silent():
    with quiet():
        yield


def folder_of(model: transformers.PreTrainedModel, path: Path, **options) -> Path:
    """The model in path/plain, compressed in path/small, and that decompressed in path/back."""
    with quiet():
        model.save_pretrained(path / "plain")
    (path / "plain" / "notes.txt").write_text("a side file")
    nnc.compress(path / "plain", path / "small", threads=1, **options)
    nnc.decompress(path / "small", path / "back", threads=1)
    return path


def make_bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=90, **SMALL))


def make_llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(vocab_size=90, num_key_value_heads=2, tie_word_embeddings=True, **SMALL))


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return folder_of(make_bert(), tmp_path_factory.mktemp("bert"), bits=4)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return folder_of(make_llama().half(), tmp_path_factory.mktemp("llama"), bits=6)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return folder_of(make_bert(), tmp_path_factory.mktemp("shards"), bits=5, shard_bytes=5000)


def same_weights(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def weights_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("model")}


def changed(folder: Path, target: Path, change) -> Path:
    """A copy of a folder with other bytes in its weights."""
    shutil.copytree(folder, target)
    file = target / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return target


# ---- config.json -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "{}", "{ }", "{\n}\n", '{"a":1}', '{"a": {"b": [1, {}]}}\n', '{\n  "a": 1,\n  "b": {\n    "c": 2\n  }\n}\n', '{\n\t"a": "}"\n}',
    ' {"a": "x"} \n', '{\r\n    "a": null\r\n}\r\n'])
def test_config_comes_back_byte_for_byte(text):
    marked = mark_config(text.encode())
    assert json.loads(marked) == {**json.loads(text), "quantization_config": {"quant_method": "nnc", "version": "1"}}
    assert list(json.loads(marked))[:-1] == list(json.loads(text))
    assert clear_config(marked) == text.encode()
    assert mark_config(marked) == marked and clear_config(text.encode()) == text.encode()


def test_config_that_was_edited_comes_back_as_the_same_json():
    edited = json.dumps({"quantization_config": {"version": "1", "quant_method": "nnc", "more": {"x": 1}}, "a": [1]}).encode()
    assert json.loads(clear_config(edited)) == {"a": [1]}


@pytest.mark.parametrize("text", ["", "[]", "no json", '{"quantization_config": {"quant_method": "gptq"}}', "\xff"])
def test_config_of_others_stays(text):
    content = text.encode("latin-1")
    assert mark_config(content) == content == clear_config(content)


def test_folder_has_the_names_of_hugging_face(bert):
    assert {path.name for path in (bert / "small").iterdir()} == {path.name for path in (bert / "plain").iterdir()}
    assert {path.name: path.read_bytes() for path in (bert / "back").iterdir() if not path.name.startswith("model")} == {
        path.name: path.read_bytes() for path in (bert / "plain").iterdir() if not path.name.startswith("model")}
    assert is_compressed(bert / "small") and not is_compressed(bert / "plain") and not is_compressed(bert / "back")
    with pytest.raises(nnc.InvalidArgument, match="compressed already"):
        nnc.compress(bert / "small", bert / "twice", bits=4)


def test_a_folder_with_two_checkpoints_is_refused(bert, shards, tmp_path):
    shutil.copytree(shards / "small", tmp_path / "both")
    shutil.copy(bert / "plain" / "model.safetensors", tmp_path / "both")
    with pytest.raises(nnc.InvalidArgument, match="two checkpoints"):
        nnc.load(tmp_path / "both")


# ---- registration ----------------------------------------------------------------------------------------------------

def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_nnc_before_transformers(bert):
    assert run(
        "import nnc, sys; assert not {'torch', 'transformers', 'numba'} & sys.modules.keys(); from transformers import AutoModel;"
        "assert 'numba' not in sys.modules;"
        f"AutoModel.from_pretrained({str(bert / 'small')!r}); print('loaded')").strip() == "loaded"


@pytest.mark.slow
def test_without_nnc_nothing_is_loaded_and_with_nnc_after_transformers_it_is(bert):
    folder = str(bert / "small")
    assert run(f"""
from transformers import AutoModelForMaskedLM
try:
    AutoModelForMaskedLM.from_pretrained({folder!r})
except RuntimeError:
    print("refused")
import nnc
AutoModelForMaskedLM.from_pretrained({folder!r})
print("loaded")""").split() == ["refused", "loaded"]


def test_registering_again_changes_nothing():
    before = modeling.safe_open, modeling.safe_save_file
    dispatch.register(modeling)
    assert (modeling.safe_open, modeling.safe_save_file) == before and modeling.safe_open.passes_on is safe_open


@pytest.mark.parametrize("version", ["4.57.6", "6.0.0", "4.9.0.dev0"])
def test_other_versions_of_transformers_refuse_compressed_folders(bert, monkeypatch, version):
    other = types.SimpleNamespace(safe_open=safe_open)
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    dispatch.register(other)
    with pytest.raises(nnc.Unsupported, match=f"from 5.0 to below 6.0, this is {version}"):
        other.safe_open(bert / "small" / "model.safetensors", framework="pt")
    assert set(other.safe_open(bert / "back" / "model.safetensors", framework="pt").keys()) == set(nnc.load(bert / "small"))


def test_the_largest_tensor_of_a_folder_has_an_entry_of_its_own(bert, tmp_path):
    """Without nnc its bytes do not fit; a file with nothing but the entry "nnc" would be taken for one without weights."""
    units = open_file(bert / "small" / "model.safetensors").directory.units
    assert sum(unit.own for unit in units) == 1
    nnc.compress(bert / "plain", tmp_path / "one.safetensors", bits=4, threads=1)
    assert not any(unit.own for unit in open_file(tmp_path / "one.safetensors").directory.units)


# ---- loading ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [AutoModel, AutoModelForMaskedLM, BertModel, BertForMaskedLM])
@pytest.mark.parametrize("dtype", [None, "auto", torch.float16, "bfloat16"])
def test_weights_are_those_of_the_decompressed_folder(bert, kind, dtype):
    options = {"dtype": dtype, "add_pooling_layer": False} if kind in (AutoModel, BertModel) else {"dtype": dtype}
    assert same_weights(kind.from_pretrained(bert / "small", **options), kind.from_pretrained(bert / "back", **options))


def test_weights_are_those_of_nnc_load(bert, shards, llama):
    for folder, kind in ((bert, BertForMaskedLM), (shards, BertForMaskedLM), (llama, LlamaForCausalLM)):
        own = kind.from_pretrained(folder / "small", dtype="auto").state_dict()
        state = nnc.load(folder / "small")
        assert state and all(torch.equal(own[name], value) for name, value in state.items())


def test_a_task_head_is_new_and_the_base_is_loaded(bert):
    model = BertForSequenceClassification.from_pretrained(bert / "small", num_labels=3)
    base = BertForMaskedLM.from_pretrained(bert / "back")
    assert torch.equal(model.bert.encoder.layer[1].output.dense.weight, base.bert.encoder.layer[1].output.dense.weight)
    assert model.classifier.weight.shape == (3, 32)


def test_tied_weights_are_one(llama):
    model = AutoModelForCausalLM.from_pretrained(llama / "small")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(6)[None]
    assert torch.equal(
        model.generate(ids, max_new_tokens=8, do_sample=False),
        AutoModelForCausalLM.from_pretrained(llama / "back").generate(ids, max_new_tokens=8, do_sample=False),
    )


def test_a_difference_finds_its_reference_beside_it(bert, tmp_path):
    tuned = make_bert()
    with torch.no_grad():
        for value in tuned.parameters():
            value.add_(1e-3 * torch.randn_like(value))
    tuned.save_pretrained(tmp_path / "tuned")
    shutil.copytree(bert / "plain", tmp_path / "base")
    nnc.compress(tmp_path / "tuned", tmp_path / "delta", reference=tmp_path / "base", bits=3, threads=1)
    nnc.decompress(tmp_path / "delta", tmp_path / "back")
    model = BertForMaskedLM.from_pretrained(tmp_path / "delta")
    assert same_weights(model, BertForMaskedLM.from_pretrained(tmp_path / "back"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(nnc.InvalidArgument, match="needs its reference 'base'"):
        BertForMaskedLM.from_pretrained(tmp_path / "delta")


def test_loaded_models_are_like_dense_ones(bert):
    """They may be cast, copied, pickled and trained."""
    model = BertForMaskedLM.from_pretrained(bert / "small")
    assert not getattr(model, "is_quantized", False) and model.config.quantization_config.quant_method == "nnc"
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_weights(model, other) and other.hf_quantizer.originals == model.hf_quantizer.originals
    assert model.hf_quantizer.is_trainable and all(value.requires_grad for value in model.parameters())
    model(torch.arange(5)[None], labels=torch.arange(5)[None]).loss.backward()
    assert copy.deepcopy(model).half().dtype == torch.float16


def test_a_state_dict_that_is_given_counts(bert):
    state = nnc.load(bert / "back" / "model.safetensors") if is_compressed(bert / "back") else nnc.load(bert / "small")
    state = {name: torch.zeros_like(value) for name, value in state.items()}
    config = transformers.AutoConfig.from_pretrained(bert / "small")
    model = BertForMaskedLM.from_pretrained(None, config=config, state_dict=state)
    assert not model.bert.embeddings.word_embeddings.weight.any() and not hasattr(model.config, "quantization_config")


def test_perplexity_is_that_of_nnc_eval(llama):
    from nnc.evaluation.language import perplexity

    tokens = np.arange(1000) * 7 % 89
    task = perplexity(tokens, window=32)
    told = nnc.evaluate(llama / "small", task)
    model = AutoModelForCausalLM.from_pretrained(llama / "small", dtype=torch.float32).eval()
    assert nnc.evaluate(model, task).value == told.value


# ---- saving ----------------------------------------------------------------------------------------------------------

def test_saving_writes_the_same_bytes(bert, shards, llama, tmp_path):
    for name, folder in (("bert", bert), ("shards", shards), ("llama", llama)):
        model = (LlamaForCausalLM if folder is llama else BertForMaskedLM).from_pretrained(folder / "small")
        model.save_pretrained(tmp_path / name)
        assert weights_in(tmp_path / name) == weights_in(folder / "small")
        assert same_weights(type(model).from_pretrained(tmp_path / name), model)
        assert json.loads((tmp_path / name / "config.json").read_text())["quantization_config"] == {"quant_method": "nnc", "version": "1"}


def test_saving_in_place_and_over_other_checkpoints(bert, shards, tmp_path):
    for folder, other in ((bert, shards), (shards, bert)):
        place = tmp_path / folder.name
        shutil.copytree(folder / "small", place)
        model = BertForMaskedLM.from_pretrained(place)
        model.save_pretrained(place)
        assert weights_in(place) == weights_in(folder / "small")
        BertForMaskedLM.from_pretrained(other / "small").save_pretrained(place)
        assert weights_in(place) == weights_in(other / "small")
        with pytest.raises(nnc.InvalidArgument, match="another file|No such file"):
            model.save_pretrained(tmp_path / "x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saving_keeps_the_file_whatever_dtype_it_was_loaded_in(bert, tmp_path, dtype):
    model = BertModel.from_pretrained(bert / "small", dtype=dtype, add_pooling_layer=False)
    model.save_pretrained(tmp_path / "out")
    assert weights_in(tmp_path / "out") == weights_in(bert / "small")


def test_changed_weights_are_not_saved_as_the_file(bert, tmp_path):
    def refuse(model, match):
        with pytest.raises(nnc.InvalidArgument, match=match) as error:
            model.save_pretrained(tmp_path / "out")
        assert "dequantize" in str(error.value) and "\n" not in str(error.value)

    model = BertForMaskedLM.from_pretrained(bert / "small")
    refuse(copy.deepcopy(model).half(), "not those of .* any more")
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[3, 4] += 1e-6
    refuse(model, "1 tensors are not those of .* the first is 'bert.encoder.layer.0.output.dense.weight'")
    refuse(BertForSequenceClassification.from_pretrained(bert / "small"), "are not in .*'bert.pooler.dense.bias'")
    model = BertForMaskedLM.from_pretrained(bert / "small")
    model.resize_token_embeddings(100, mean_resizing=False)
    refuse(model, "does not fit")
    model.dequantize()
    model.save_pretrained(tmp_path / "dense")
    assert same_weights(BertForMaskedLM.from_pretrained(tmp_path / "dense"), model) and not is_compressed(tmp_path / "dense")


def test_files_that_are_gone_or_changed_are_not_saved(bert, tmp_path):
    shutil.copytree(bert / "small", tmp_path / "gone")
    model = BertForMaskedLM.from_pretrained(tmp_path / "gone")
    damaged = bytearray((tmp_path / "gone" / "model.safetensors").read_bytes())
    damaged[-30] ^= 4
    (tmp_path / "gone" / "model.safetensors").write_bytes(damaged)
    with pytest.raises(nnc.Corruption, match="checksum"):
        model.save_pretrained(tmp_path / "out")
    (tmp_path / "gone" / "model.safetensors").unlink()
    with pytest.raises(nnc.InvalidArgument, match="No such file.*dequantize"):
        model.save_pretrained(tmp_path / "out")


def test_a_part_of_a_model_is_saved_dense(bert, tmp_path):
    model = BertForMaskedLM.from_pretrained(bert / "small")
    model.bert.save_pretrained(tmp_path / "part")
    part = BertModel.from_pretrained(tmp_path / "part", add_pooling_layer=False)
    assert same_weights(part, model.bert) and not hasattr(part.config, "quantization_config")


def test_shards_have_no_variants(shards, tmp_path):
    model = BertForMaskedLM.from_pretrained(shards / "small")
    with pytest.raises(nnc.InvalidArgument, match="variant"):
        model.save_pretrained(tmp_path / "out", variant="fp16")


# ---- what is refused -------------------------------------------------------------------------------------------------

def test_damage_and_unknown_versions_are_told(bert, tmp_path):
    damaged = changed(bert / "small", tmp_path / "damaged", lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    with pytest.raises(nnc.Corruption, match="damaged/model.safetensors: unit of .* checksum differs"):
        BertForMaskedLM.from_pretrained(damaged)
    newer = changed(bert / "small", tmp_path / "newer", lambda data: data.replace(b'{"nnc":"1"}', b'{"nnc":"9"}', 1))
    with pytest.raises(nnc.Unsupported, match="format version '9'.* upgrade"):
        BertForMaskedLM.from_pretrained(newer)
    config = newer / "config.json"
    config.write_text(config.read_text().replace('"version": "1"', '"version": "7"'))
    with pytest.raises(nnc.Unsupported, match="format version '7'.* upgrade"):
        BertForMaskedLM.from_pretrained(newer)
    config.write_text(config.read_text().replace('"version": "7"', '"bits": 4'))
    with pytest.raises(nnc.InvalidArgument, match="has no 'bits'"):
        BertForMaskedLM.from_pretrained(newer)


def test_a_model_that_does_not_fit_is_told(bert, llama):
    with pytest.raises(nnc.InvalidArgument, match="no tensor of it belongs to GPT2LMHeadModel: it is of BertForMaskedLM"):
        GPT2LMHeadModel.from_pretrained(bert / "small")
    config = transformers.AutoConfig.from_pretrained(bert / "small")
    config.vocab_size = 91
    with pytest.raises((RuntimeError, nnc.InvalidArgument), match="size|shape"):
        BertForMaskedLM.from_pretrained(bert / "small", config=config)


def test_a_shard_alone_is_refused(shards, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(sorted((shards / "small").glob("model-*"))[0], tmp_path / "one" / "model.safetensors")
    shutil.copy(shards / "small" / "config.json", tmp_path / "one")
    with pytest.raises(nnc.Corruption, match="shards"):
        BertForMaskedLM.from_pretrained(tmp_path / "one")


def test_a_dense_folder_is_not_compressed_by_loading(bert):
    from nnc.huggingface.quantizer import NncConfig

    with pytest.raises(nnc.InvalidArgument, match="nnc compress"):
        BertForMaskedLM.from_pretrained(bert / "plain", quantization_config=NncConfig())


@pytest.mark.skipif(not hasattr(modeling, "_safe_load_bytes"), reason="this transformers always maps files")
def test_bytes_are_refused(bert):
    with pytest.raises(nnc.InvalidArgument, match="leave out disable_mmap"):
        BertForMaskedLM.from_pretrained(bert / "small", disable_mmap=True)


# ---- devices ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("places", ["cpu", "auto", {"": "cpu"}])
def test_device_maps(bert, places):
    pytest.importorskip("accelerate")
    model = BertForMaskedLM.from_pretrained(bert / "small", device_map=places)
    assert same_weights(model, BertForMaskedLM.from_pretrained(bert / "back"))


def test_weights_on_the_disk_are_decoded_there(bert, tmp_path):
    pytest.importorskip("accelerate")
    places = {"bert.embeddings": "cpu", "bert.encoder.layer.0": "cpu", "bert.encoder.layer.1": "disk", "cls": "cpu"}
    with pytest.raises(nnc.InvalidArgument, match="offload_folder"):
        BertForMaskedLM.from_pretrained(bert / "small", device_map=places)
    model = BertForMaskedLM.from_pretrained(bert / "small", device_map=places, offload_folder=tmp_path / "disk")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, BertForMaskedLM.from_pretrained(bert / "back")(ids).logits)
    model.save_pretrained(tmp_path / "out")
    assert weights_in(tmp_path / "out") == weights_in(bert / "small")


# ---- the file in the form of safe_open -------------------------------------------------------------------------------

def test_a_compressed_file_reads_like_safe_open(bert, llama):
    for folder in (bert, llama):
        with safe_open(folder / "back" / "model.safetensors", "pt") as plain:
            with CompressedFile(folder / "small" / "model.safetensors") as file:
                assert sorted(file.keys()) == sorted(plain.keys()) == sorted(file.offset_keys())
                assert file.metadata() == plain.metadata()
                for name in plain.keys():
                    ours, theirs = file.get_slice(name), plain.get_slice(name)
                    assert (ours.get_shape(), ours.get_dtype()) == (theirs.get_shape(), theirs.get_dtype())
                    assert torch.equal(ours[...], theirs[...]) and torch.equal(ours[1:3], theirs[1:3])
                    assert torch.equal(file.get_tensor(name), plain.get_tensor(name))
                with pytest.raises(nnc.InvalidArgument, match="no tensor 'x'"):
                    file.get_slice("x")
                with pytest.raises(nnc.InvalidArgument, match="no tensor 'x'"):
                    file.get_tensor("x")
            with pytest.raises(nnc.InvalidArgument, match="is closed"):
                file.get_tensor(plain.keys()[0])
    with pytest.raises(nnc.Unsupported, match="framework"):
        CompressedFile(bert / "small" / "model.safetensors", framework="np")


def test_equal_tensors_do_not_share_memory(tmp_path):
    """A file holds them once; dense files hold them twice, and a model that does not tie them may train them apart."""
    state = {"a": torch.randn(40, 40), "b": torch.zeros(3)}
    nnc.compress({**state, "c": state["a"].clone()}, tmp_path / "x.safetensors", bits=5, threads=1)
    file = CompressedFile(tmp_path / "x.safetensors")
    one, two = file.get_tensor("a"), file.get_tensor("c")
    assert torch.equal(one, two) and one.data_ptr() != two.data_ptr()


def test_sentence_transformers(bert, tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    for name in ("small", "back"):
        shutil.copytree(bert / name, tmp_path / name)
        (tmp_path / name / "vocab.txt").write_text("\n".join(vocabulary))
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    one, two = (sentences.SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("small", "back"))
    assert np.array_equal(one.encode(["a b", "c"]), two.encode(["a b", "c"]))
